"""`FacePriorPipeline`: face restoration as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import nn

from faceprior.corrector import (
    ConditionCorrector,
    Corrector,
    embedded_corrector_for,
    load_corrector,
    save_corrector,
)
from faceprior.errors import ImageError, OptionError
from faceprior.evaluation.metrics import lr_consistency, spread
from faceprior.images import MIN_SIDE, resize, square, to_pil, to_rgb, to_tensor
from faceprior.methods import DEFAULT_PRESET, Method, Preset, find_method, find_preset
from faceprior.priors import DEFAULT_PRIOR, ModelCard, NoiseSchedule, Prior, load_prior, save_prior
from faceprior.priors.store import resolve
from faceprior.sampling import Initial, NoiseSource, OnStep, Sampler, Step, sample, spawn_generators

ImageInput = Image.Image | np.ndarray | torch.Tensor
OutputType = Literal["pil", "np", "pt"]
StepCallback = Callable[["FacePriorPipeline", int, int, dict[str, Any]], dict[str, Any]]

MIN_SCALE, MAX_SCALE = 2.0, 32.0
AUTO_SCALES = (4.0, 16.0)
"""The range that scale "auto" keeps to: what the priors and correctors are made for."""


@dataclass
class FacePriorOutput(BaseOutput):  # type: ignore[misc]
    """Restored faces: B inputs, N samples of each.

    Attributes:
        images: B · N restored faces, the samples of an input side by side: a list of Pillow images, a float32
            array (B · N, R, R, 3) or a tensor (B · N, 3, R, R), in [0, 1].
        mean: mean of the samples of each input, as `images`, B of them.
        spread: disagreement of the samples: standard deviation in [0, 1] pixel values, array or tensor
            (B, R, R); zeros for a single sample.
        lr_consistency: PSNR in dB between each reduced result and its low-resolution input, B · N of them.
        scales: R/n for each input.
    """

    images: Any
    mean: Any
    spread: Any
    lr_consistency: list[float]
    scales: list[float]


class FacePriorPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Restores aligned low-resolution faces with a diffusion prior, by DPI or any other method.

    Args:
        unet: the prior's network, any that `faceprior.priors.load_prior` loads.
        scheduler: a diffusers scheduler that carries the prior's noise schedule and prediction type; the
            sampling itself is faceprior's.
        corrector: the CRT; None restores without.
        card: what the prior is; made from the network if it is None.
        corrector_card: what the corrector is.
    """

    model_cpu_offload_seq = "unet->corrector"
    _optional_components = ("corrector",)

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        corrector: ConditionCorrector | None = None,
        card: ModelCard | None = None,
        corrector_card: ModelCard | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, corrector=corrector)
        schedule = NoiseSchedule.from_scheduler_config(scheduler.config)
        if card is None:
            card = ModelCard(
                kind="prior",
                name=type(unet).__name__,
                resolution=int(cast("Any", unet.config).sample_size),
                schedule={"_class_name": type(scheduler).__name__, **_plain_config(scheduler)},
                prediction_type=scheduler.config.get("prediction_type", "epsilon"),
            )
        self.prior = Prior(unet, schedule, scheduler.config.get("prediction_type", "epsilon"), card)
        if corrector is not None and corrector_card is None:
            corrector_card = ModelCard(kind="corrector", name="corrector", resolution=corrector.resolution)
        self.corrector_card = corrector_card
        self.to()  # networks lie in memory as after loading, so results are the same to the last bit

    @classmethod
    def from_pretrained(
        cls,
        prior: str | Path = DEFAULT_PRIOR,
        *,
        corrector: str | Path | None = "auto",
        adm_config: Path | None = None,
        torch_dtype: torch.dtype = torch.float32,
    ) -> FacePriorPipeline:
        """Load a prior and its corrector.

        Args:
            prior: name of an embedded prior, diffusers folder, hub id or ADM checkpoint file.
            corrector: name, folder or hub id; "auto" takes the one saved with the prior, else the embedded one
                of the same resolution and noise schedule, else none; None or "none" takes none.
            adm_config: architecture flags of an ADM checkpoint file.
            torch_dtype: number format to compute in.

        Raises:
            WeightsError: something is not found, not safe, or does not fit.
            OptionError: the corrector does not fit the prior.
        """
        loaded = load_prior(prior, adm_config)
        saved = resolve(prior, "prior") / "corrector"
        found: Corrector | None = None
        if corrector == "auto":
            if (saved / "config.json").is_file():
                found = load_corrector(saved)
            else:
                found = embedded_corrector_for(loaded.resolution, loaded.schedule)
        elif corrector is not None and corrector != "none":
            found = load_corrector(corrector)
            found.check(loaded.resolution, loaded.schedule, found.network.stride)
        config = {**loaded.card.schedule, "prediction_type": loaded.prediction_type}
        scheduler = DDIMScheduler.from_config(config)
        pipeline = cls(
            loaded.network,
            scheduler,
            found.network if found else None,
            card=loaded.card,
            corrector_card=found.card if found else None,
        )
        pipeline.to(torch_dtype)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write prior, scheduler, corrector and cards as a diffusers folder that `from_pretrained` reads."""
        folder = Path(save_directory)
        save_prior(self.prior, folder, half=False)
        corrector = self._corrector()
        if corrector is not None:
            save_corrector(corrector, folder / "corrector", half=False)

    def to(self, *args: Any, **kwargs: Any) -> FacePriorPipeline:
        """Move and cast the networks, as `torch.nn.Module.to` does."""
        for network in (self.unet, self.corrector):
            if network is not None:
                nn.Module.to(network, *args, memory_format=torch.channels_last, **kwargs)  # type: ignore[call-overload]
        return self

    def without_corrector(self) -> FacePriorPipeline:
        """Return a pipeline of the same prior, not a copy of it, that restores without a corrector."""
        return FacePriorPipeline(self.unet, self.scheduler, None, card=self.prior.card)

    def check(self, preset: Preset) -> None:
        """Check that options fit the prior and the corrector before any work is done; raises OptionError."""
        method = find_method(preset.method)
        self._steps(preset)
        method.solver(preset.sampling)
        face = torch.zeros(3, MIN_SIDE, MIN_SIDE)
        method.begin([face], self.prior, preset.options, self._corrector(method))

    def evaluations(self, preset: Preset) -> int:
        """How often a restoration asks the prior, and calls `on_step`: its steps, less those that go up."""
        return sum(not step.rises for step in self._steps(preset))

    def _steps(self, preset: Preset) -> list[Step]:
        return find_method(preset.method).steps(self.prior.schedule, preset.sampling, preset.options)

    @property
    def resolution(self) -> int:
        """Side R of restored faces, in pixels."""
        return self.prior.resolution

    def _corrector(self, method: Method | None = None) -> Corrector | None:
        """The corrector, if there is one and the method works with it."""
        if self.corrector is None or self.corrector_card is None:
            return None
        if method is not None and not method.uses_corrector:
            return None
        return Corrector(self.corrector, self.corrector_card)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        scale: float | Literal["auto"] = "auto",
        num_inference_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_samples: int = 1,
        *,
        preset: str | Preset = DEFAULT_PRESET,
        batch_size: int = 8,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
        **options: Any,
    ) -> FacePriorOutput | tuple[Any, ...]:
        """Restore aligned faces.

        Args:
            image: one or several low-resolution faces, aligned as the prior's card says: Pillow images, arrays
                (H, W, 3) or (B, H, W, 3) of uint8 or of floats in [0, 1], or tensors (3, H, W) or (B, 3, H, W)
                in [0, 1]. They need not be of one size; of an oblong one the central square is taken.
            scale: R/n, the size n that an input is taken to have, 2 to 32; it is resized to n×n first if it
                differs. "auto" keeps the input's own size within ×4 to ×16.
            num_inference_steps: noise levels of the sampler, and for most methods evaluations of the prior; None
                leaves it to the preset.
            generator: one for all inputs (each then starts from its state, so that no result depends on the
                others), or one for each; None draws fresh randomness.
            num_samples: samples N of each input.
            preset: name of a preset or of a method, or a preset of your own.
            batch_size: samples that go through the networks together; no result depends on it.
            output_type: "pil", "np" or "pt".
            return_dict: return a `FacePriorOutput` rather than a tuple.
            callback_on_step_end: called as (pipeline, step index, t, tensors) after every step; a "sample" in the
                dictionary that it returns replaces x_{t−1}.
            callback_on_step_end_tensor_inputs: the tensors that it gets: "sample" (x_{t−1}) and "x0" (the
                corrected estimate, where images are in [-1, 1]), (B, 3, R, R).
            **options: options of the preset by name: `solver`, `start`, `end`, `eta`, and the method's own, for DPI
                `tau`, `late_weight`, `edge_exponent`, `stride`, `placement`, `crt`, `crt_once`; None leaves them
                to the preset.

        Raises:
            ImageError: an input is not an image that can be restored.
            OptionError: an option is unknown or out of its range.
        """
        if num_samples < 1 or batch_size < 1:
            raise OptionError(f"samples is {num_samples} and batch size {batch_size}; both must be at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise OptionError(f"output_type is {output_type!r}; choose pil, np or pt")
        if unknown := set(callback_on_step_end_tensor_inputs) - {"sample", "x0"}:
            raise OptionError(f"callback tensors {', '.join(sorted(unknown))} are not known; choose sample and x0")
        if "steps" in options:
            raise OptionError("the number of steps is num_inference_steps here, not steps")
        chosen = find_preset(preset) if isinstance(preset, str) else preset
        chosen = chosen.with_options(steps=num_inference_steps, **options)
        faces = [low_resolution(face, scale, self.resolution) for face in as_tensors(image)]
        batches = -(-len(faces) * num_samples // self._batch_size(chosen, batch_size))
        with self.progress_bar(total=self.evaluations(chosen) * batches) as progress:

            def on_step(step: Step, x_prev: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
                progress.update()
                if callback_on_step_end is None:
                    return x_prev
                tensors = {"sample": x_prev, "x0": x0}
                wanted = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                changed = callback_on_step_end(self, step.index, step.t, wanted) or {}
                replaced: torch.Tensor = changed.get("sample", x_prev)
                return replaced

            generators = _one_each(generator, len(faces))
            samples = self.restore(faces, generators, num_samples, chosen, batch_size, on_step)
        output = FacePriorOutput(
            images=_as_type(samples.flatten(0, 1), output_type),
            mean=_as_type(samples.mean(1), output_type),
            spread=_as_array(torch.stack([spread(own) for own in samples]), output_type),
            lr_consistency=[
                value
                for own, face in zip(samples, faces, strict=True)
                for value in lr_consistency(own, face.expand(num_samples, -1, -1, -1)).tolist()
            ],
            scales=[self.resolution / face.shape[-1] for face in faces],
        )
        return output if return_dict else output.to_tuple()

    @torch.inference_mode(mode=False)  # inside it there are no gradients, which some methods take
    def restore(
        self,
        faces: Sequence[torch.Tensor],
        generators: Sequence[torch.Generator],
        num_samples: int,
        preset: Preset,
        batch_size: int,
        on_step: OnStep | None = None,
        initial: Initial | None = None,
        *,
        whole_batches: bool = False,
    ) -> torch.Tensor:
        """Restore low-resolution faces as they are; what `__call__` and the workflow over files share.

        Args:
            faces: B faces, each (3, n, n) in [-1, 1].
            generators: one for each face; its samples' generators are derived from it.
            num_samples: samples N of each face.
            preset: all options.
            batch_size: samples that go through the networks together.
            on_step: see `faceprior.sampling.sample`.
            initial: clean faces to start from, one for each face; None leaves the start to the method.
            whole_batches: networks see whole batches on a CPU too: faster, but the last bits of a result depend on
                its batch. For measuring many faces; a result that someone keeps is made without.

        Returns:
            (B, N, 3, R, R) in [-1, 1], on the CPU.

        Raises:
            OptionError: initial faces are given to a method that cannot start from them.
        """
        method, steps = find_method(preset.method), self._steps(preset)
        corrector = self._corrector(method)
        device, batch_size = self.prior.device, self._batch_size(preset, batch_size)
        sources = [source for own in generators for source in spawn_generators(own, num_samples)]
        repeated = [face for face in faces for _ in range(num_samples)]
        restored = []
        for first in range(0, len(repeated), batch_size):
            batch = slice(first, first + batch_size)
            conditions = [face.to(device) for face in repeated[batch]]
            restoration = method.begin(conditions, self.prior, preset.options, corrector)
            starts = None
            if initial is not None:
                starts = Initial(*(own.repeat_interleave(num_samples, 0)[batch].to(device) for own in initial))
            noise = NoiseSource(sources[batch], device)
            sampler = Sampler(self.prior, method.solver(preset.sampling), noise, whole_batches=whole_batches)
            found = sample(restoration, steps, sampler, initial=starts, on_step=on_step)
            restored.append(found.clamp(-1, 1).cpu())
        return torch.cat(restored).unflatten(0, (len(faces), num_samples))

    def _batch_size(self, preset: Preset, batch_size: int) -> int:
        # a CPU computes one image after the other anyway; so only one image's graph is in memory
        differentiates = find_method(preset.method).differentiates
        return 1 if differentiates and self.prior.device.type == "cpu" else batch_size


def _plain_config(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def low_resolution(face: torch.Tensor, scale: float | Literal["auto"], resolution: int) -> torch.Tensor:
    """Bring a face to the size that it is taken to have.

    Args:
        face: (3, n, n) in [-1, 1].
        scale: resolution / side of the result; "auto" keeps the face's own side within ×4 to ×16.
        resolution: side R of the restored face.

    Raises:
        OptionError: the scale is not a number from 2 to 32, or leaves fewer than 4 pixels.
    """
    if scale == "auto":
        low, high = (round(resolution / bound) for bound in reversed(AUTO_SCALES))
        side = min(max(face.shape[-1], low), high)
    else:
        if not (isinstance(scale, int | float) and MIN_SCALE <= scale <= MAX_SCALE):
            raise OptionError(f"scale is {scale!r}; choose a number from {MIN_SCALE:g} to {MAX_SCALE:g}, or auto")
        side = round(resolution / scale)
        if side < MIN_SIDE:
            raise OptionError(
                f"scale {scale:g} leaves {side} pixels of a {resolution}-pixel face; choose a smaller one"
            )
    return resize(face[None], side)[0].clamp(-1, 1)


def as_tensors(images: ImageInput | Sequence[ImageInput]) -> list[torch.Tensor]:
    """Return every kind of image input as square (3, n, n) tensors in [-1, 1].

    Raises:
        ImageError: an input has the wrong type, shape or size.
    """
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 3):
        images = [images]
    if len(images) == 0:
        raise ImageError("no image was given")
    return [_as_tensor(image) for image in images]


def _as_tensor(image: Any) -> torch.Tensor:
    if isinstance(image, Image.Image):
        return _checked(to_tensor(square(to_rgb(image))))
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] == 3:
        values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    elif isinstance(image, torch.Tensor) and image.ndim == 3 and image.shape[0] == 3:
        values = image.detach().cpu()
    else:
        shape = getattr(image, "shape", "")
        raise ImageError(
            f"an image of type {type(image).__name__} {tuple(shape) if shape else ''} is not understood;"
            " give a Pillow image, an array (H, W, 3) or a tensor (3, H, W)"
        )
    values = values.float() / 255.0 if values.dtype == torch.uint8 else values.float()
    if values.numel() == 0:
        raise ImageError("a face of 0 pixels is too small")
    if not bool(torch.isfinite(values).all()) or values.min() < 0 or values.max() > 1:
        raise ImageError("an image has values outside [0, 1]; give floats in [0, 1] or uint8")
    side = min(values.shape[1:])
    top, left = (values.shape[1] - side) // 2, (values.shape[2] - side) // 2
    return _checked(values[:, top : top + side, left : left + side] * 2 - 1)


def _checked(face: torch.Tensor) -> torch.Tensor:
    if face.shape[-1] < MIN_SIDE:
        raise ImageError(f"a face of {face.shape[-1]} pixels is too small; it needs at least {MIN_SIDE}")
    return face


def _one_each(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> Sequence[torch.Generator]:
    if generator is None:
        fresh = torch.Generator()
        fresh.seed()
        generator = fresh
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        copies = [torch.Generator(generator.device) for _ in range(count)]
        for copy in copies:
            copy.set_state(state)
        torch.randint(2**62, (), generator=generator, device=generator.device)  # the next call starts elsewhere
        return copies
    if len(generator) != count:
        raise OptionError(f"{len(generator)} generators for {count} images; give one, or one for each")
    return generator


def _as_type(images: torch.Tensor, output_type: OutputType) -> Any:
    if output_type == "pil":
        return [to_pil(image) for image in images]
    values = (images + 1) / 2
    return _as_array(values.permute(0, 2, 3, 1) if output_type == "np" else values, output_type)


def _as_array(values: torch.Tensor, output_type: OutputType) -> Any:
    return values if output_type == "pt" else values.numpy()
