"""`FacePriorPipeline`: face restoration as a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import nn

from faceprior.corrector import Correction, Corrector, CorrectorNetwork, save_corrector
from faceprior.devices import choose_device
from faceprior.doubt import error_scale, half_width
from faceprior.errors import OptionError
from faceprior.evaluation.metrics import lr_consistency
from faceprior.images import MIN_SIDE
from faceprior.methods import DEFAULT_PRESET, Method, Preset, find_method, find_preset
from faceprior.pipeline.components import (
    check_component,
    corrector_for,
    describe,
    prediction_type_of,
    schedule_of,
    scheduler_for,
)
from faceprior.pipeline.conversions import (
    ImageInput,
    OutputType,
    Seed,
    as_images,
    as_tensors,
    as_values,
    generators_of,
    low_resolution,
    plain,
)
from faceprior.priors import DEFAULT_PRIOR, ModelCard, NoiseSchedule, Prior, load_prior, save_prior
from faceprior.priors.residual_unet import GaussianResidualUNet
from faceprior.priors.store import bare, in_own_memory, read_index, write_index
from faceprior.sampling import (
    Batch,
    Initial,
    NoiseSource,
    OnStep,
    Sampler,
    Step,
    in_turn,
    on_cores,
    sample_batches,
    spawn_generators,
)

StepCallback = Callable[["FacePriorPipeline", int, int, dict[str, Any]], dict[str, Any]]

_COMPONENTS = ("unet", "scheduler", "corrector")


@dataclass
class FacePriorOutput(BaseOutput):  # type: ignore[misc]
    """Restored faces: B inputs, N samples of each.

    Attributes:
        images: B · N restored faces, the samples of an input side by side: a list of Pillow images, a float32
            array (B · N, R, R, 3) or a tensor (B · N, 3, R, R), in [0, 1].
        mean: mean of the samples of each input, as `images`, B of them.
        doubt: for each input the half-width, in [0, 1] pixel values, of an interval around its first result that
            holds the true pixel with a probability of 90 % (`faceprior.doubt`), array or tensor (B, R, R); None where
            it is not known, which takes a corrector that knows its error, or several samples.
        lr_consistency: PSNR in dB between each reduced result and its low-resolution input, B · N of them.
        scales: R/n for each input.
    """

    images: Any
    mean: Any
    doubt: Any
    lr_consistency: list[float]
    scales: list[float]


class FacePriorPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Restores aligned low-resolution faces with a diffusion prior, by DPI or any other method.

    What is registered is what counts: prior and corrector are made anew from the components for every call, so
    that `pipeline.unet = ...`, `torch.compile` and another scheduler act at once.

    Args:
        unet: the prior's network, any that `faceprior.priors.load_prior` loads.
        scheduler: a diffusers scheduler that carries the prior's noise schedule and prediction type; the
            sampling itself is the presets'.
        corrector: the CRT; None restores without.
        card: what the prior is; None takes the card from the folder that the network was loaded from, or else
            makes one from the network.
        corrector_card: what the corrector is; None as for the card.

    Raises:
        WeightsError: the scheduler's noise schedule or the network is not one that a prior can have. Assigning a
            component raises it too.
    """

    model_cpu_offload_seq = "unet->corrector"
    _optional_components = ("corrector",)
    _callback_tensor_inputs = ("sample", "x0")

    unet: Any
    scheduler: Any
    corrector: Any

    def __init__(
        self,
        unet: UNet2DModel | GaussianResidualUNet,
        scheduler: SchedulerMixin,
        corrector: CorrectorNetwork | None = None,
        card: ModelCard | None = None,
        corrector_card: ModelCard | None = None,
    ) -> None:
        self._cards: dict[str, ModelCard] = {}
        self._interrupt = False
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, corrector=corrector)
        for name, own in (("unet", card), ("corrector", corrector_card)):
            if own is not None and getattr(self, name) is not None:
                self._cards[name] = own
        self.to()  # networks lie in memory as after loading, so results are the same to the last bit

    def __setattr__(self, name: str, value: Any) -> None:
        """Register a component, or say at once why it cannot be one."""
        before = self.__dict__.get(name)
        if name in _COMPONENTS:
            check_component(name, value, before)
            if value is not None and self.config[name][0] is None:
                self.register_modules(**{name: value})  # diffusers would keep that there is none, and save none
                return
        super().__setattr__(name, value)
        if name in ("unet", "corrector") and value is not None:
            in_own_memory(value)
            if before is None or bare(value) is not bare(before):
                self._cards[name] = describe(value, self._cards.get(name))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = DEFAULT_PRIOR,
        *,
        corrector: str | Path | CorrectorNetwork | None = "auto",
        unet: nn.Module | None = None,
        scheduler: SchedulerMixin | None = None,
        adm_config: Path | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device_map: str | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **unknown: Any,
    ) -> FacePriorPipeline:
        """Load a prior and its corrector.

        Args:
            pretrained_model_name_or_path: name of an embedded prior, diffusers folder, hub id or ADM checkpoint
                file.
            corrector: name, folder, hub id or network; "auto" takes what was saved with the prior, and where
                the folder says nothing about a corrector the embedded one of the same resolution and noise schedule,
                if there is one; None or "none" takes none.
            unet: a network instead of the saved one.
            scheduler: a scheduler instead of the saved one.
            adm_config: architecture flags of an ADM checkpoint file.
            torch_dtype: number format to compute in; None is float32.
            dtype: the same under diffusers' newer name.
            device_map: device for all networks: "cuda", "cpu", ..., or "balanced" for the best there is.
            variant: "fp16" and the like: of several sets of weights in the folder, the one with this in its name.
            use_safetensors: True refuses pickled weights, False takes only them; None takes safetensors where there
                are both.
            revision: branch, tag or commit of the hub's repository.
            cache_dir: where downloads are kept.
            token: for the hub.
            local_files_only: don't ask the hub.
            force_download: download again.
            **unknown: other options of diffusers are refused by name.

        Raises:
            WeightsError: something is not found, not safe, or does not fit.
            OptionError: the corrector does not fit the prior, or an option is unknown.
            DeviceError: the device does not exist on this machine.
        """
        if unknown:
            raise OptionError(f"FacePriorPipeline.from_pretrained has no option {', '.join(sorted(unknown))}")
        number_format = torch_dtype or dtype or torch.float32
        if not isinstance(number_format, torch.dtype):
            raise OptionError(f"torch_dtype is {number_format!r}; give one torch.dtype, such as torch.bfloat16")
        if not isinstance(device_map, str | None):
            raise OptionError(f"device_map is {device_map!r}; name one device for all networks, or balanced")
        device = choose_device("auto" if device_map == "balanced" else device_map) if device_map else None

        source, hub = pretrained_model_name_or_path, {"cache_dir": cache_dir, "token": token}
        hub |= {"local_files_only": local_files_only, "force_download": force_download}
        prior = load_prior(
            source, adm_config, variant=variant, use_safetensors=use_safetensors, revision=revision, **hub
        )
        found = corrector_for(prior, source, corrector, variant, use_safetensors, revision, hub)
        pipeline = cls(
            prior.network,
            scheduler_for(prior),
            found.network if found else None,
            card=prior.card,
            corrector_card=found.card if found else None,
        )
        if unet is not None:
            pipeline.unet = unet
        if scheduler is not None:
            pipeline.scheduler = scheduler
        return pipeline.to(device, number_format)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> FacePriorPipeline:
        """Make a pipeline of another one's components, as diffusers does, and of the cards that go with them."""
        if isinstance(pipeline, FacePriorPipeline):
            for name, card in (("unet", "card"), ("corrector", "corrector_card")):
                if name not in kwargs:
                    kwargs.setdefault(card, getattr(pipeline, card))
        made: FacePriorPipeline = super().from_pipe(pipeline, **kwargs)
        return made

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> None:
        """Write prior, scheduler, corrector and cards as a diffusers folder that `from_pretrained` reads.

        Args:
            save_directory: the folder; made if it is missing.
            safe_serialization: weights as safetensors rather than pickled.
            variant: "fp16" and the like: part of the weights' file names; their numbers stay as they are.
            push_to_hub: upload it all, too.
            **hub: `repo_id` (the folder's name without), `commit_message`, `private`, `token`, `create_pr`.

        Raises:
            OptionError: an option is unknown.
        """
        if unknown := hub.keys() - {"repo_id", "commit_message", "private", "token", "create_pr"}:
            raise OptionError(f"FacePriorPipeline.save_pretrained has no option {', '.join(sorted(unknown))}")
        if hub and not push_to_hub:
            raise OptionError(f"{', '.join(sorted(hub))} says how to upload; add push_to_hub=True")
        folder = Path(save_directory)
        how: dict[str, Any] = {"variant": variant, "safe_serialization": safe_serialization}
        save_prior(self.prior, folder, half=False, **how)
        corrector = self._corrector()
        if corrector is not None:
            save_corrector(corrector, folder / "corrector", half=False, **how)
        components = {name: entry for name, entry in read_index(folder).items() if not name.startswith("_")}
        write_index(folder, **{**components, "corrector": self.config["corrector"]})
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.resolve().name), **hub, **how)

    def to(self, *args: Any, silence_dtype_warnings: bool = True, **kwargs: Any) -> FacePriorPipeline:
        """Move and cast the networks, as `torch.nn.Module.to` does."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # noqa: SLF001 - as torch and diffusers parse it
        if device is not None:
            super().to(device, silence_dtype_warnings=silence_dtype_warnings)  # it knows what is offloaded
        for network in (self.unet, self.corrector):
            if network is not None:
                nn.Module.to(network, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def without_corrector(self) -> FacePriorPipeline:
        """Return a pipeline of the same prior, not a copy of it, that restores without a corrector."""
        return FacePriorPipeline(self.unet, self.scheduler, None, card=self.card)

    @property
    def prior(self) -> Prior:
        """The registered network under the registered noise schedule."""
        schedule = NoiseSchedule.from_scheduler_config(self.scheduler.config)
        return Prior(self.unet, schedule, prediction_type_of(self.scheduler), self.card)

    @property
    def card(self) -> ModelCard:
        """What the prior is; of a network that took the place of another, the sha256 is unknown."""
        return replace(
            self._cards["unet"],
            schedule=schedule_of(self.scheduler),
            prediction_type=prediction_type_of(self.scheduler),
        )

    @property
    def corrector_card(self) -> ModelCard | None:
        """What the corrector is, if there is one."""
        return None if self.corrector is None else self._cards["corrector"]

    @property
    def resolution(self) -> int:
        """Side R of restored faces, in pixels."""
        return self._cards["unet"].resolution

    @property
    def interrupt(self) -> bool:
        """Whether the call now at work is to stop; a callback sets `pipeline._interrupt = True`, as in diffusers."""
        return self._interrupt

    def check(self, preset: Preset) -> None:
        """Check that options fit the prior and the corrector before any work is done; raises OptionError."""
        method = find_method(preset.method)
        self._steps(preset)
        method.solver(preset.sampling)
        face = torch.zeros(3, MIN_SIDE, MIN_SIDE)
        method.begin([face], self.prior, preset.options, self._corrector(method))

    @torch.no_grad()
    def expected(self, faces: Sequence[torch.Tensor]) -> list[Correction | None]:
        """What the corrector expects of each low-resolution face (3, n, n), as a batch of one; None without one."""
        corrector, device = self._corrector(), self._execution_device
        if corrector is None:
            return [None] * len(faces)
        return self._each(lambda face: corrector.alone(corrector.network.see(face[None].to(device))), faces)

    def doubt(self, faces: Sequence[torch.Tensor], samples: torch.Tensor) -> torch.Tensor | None:
        """Half-width of a 90 % interval around the first sample of each face; see `faceprior.doubt`.

        Args:
            faces: what was restored, each (3, n, n) in [-1, 1].
            samples: the results, (B, N, 3, R, R).

        Returns:
            (B, R, R), on the scale of [0, 1] pixel values; None where it is not known.
        """
        card = self.corrector_card if self.corrector is not None else self.card
        calibration = {} if card is None else card.calibration

        def width(face: torch.Tensor, own: torch.Tensor, expected: Correction | None) -> torch.Tensor | None:
            scale = error_scale(own[0], expected, own)
            return None if scale is None else half_width(scale, calibration, self.resolution / face.shape[-1])

        widths = self._each(width, faces, samples, self.expected(faces))
        return None if any(own is None for own in widths) else torch.stack(widths)

    def evaluations(self, preset: Preset) -> int:
        """How often a restoration asks the prior, and calls `on_step`: its steps, less those that go up."""
        return sum(not step.rises for step in self._steps(preset))

    def _steps(self, preset: Preset) -> list[Step]:
        return find_method(preset.method).steps(self.prior.schedule, preset.sampling, preset.options)

    def _corrector(self, method: Method | None = None) -> Corrector | None:
        """The corrector, if there is one and the method works with it."""
        card = self.corrector_card
        if card is None or (method is not None and not method.uses_corrector):
            return None
        return Corrector(self.corrector, card)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput],
        scale: float | Literal["auto"] = "auto",
        num_inference_steps: int | None = None,
        generator: Seed | Sequence[Seed] | None = None,
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
            image: one or several low-resolution faces, aligned as the prior's card says: Pillow images, paths, arrays
                (H, W, 3) or (B, H, W, 3) of uint8 or of floats in [0, 1], or tensors (3, H, W) or (B, 3, H, W)
                in [0, 1]; grey ones have one channel, or (H, W) alone. They need not be of one size; of an oblong
                one the central square is taken.
            scale: R/n, the size n that an input is taken to have, 2 to 32; it is resized to n×n first if it
                differs. "auto" keeps the own size of an input up to R where the method is blind, else within
                ×4 to ×16.
            num_inference_steps: noise levels of the sampler, and for most methods evaluations of the prior; None
                leaves it to the preset.
            generator: generator or seed, one for all inputs (each then starts from its state, so that no result
                depends on the others), or one for each; None takes a seed from torch's own, which
                `torch.manual_seed` sets.
            num_samples: samples N of each input.
            preset: name of a preset or of a method, or a preset of your own.
            batch_size: samples that go through the networks together; no result depends on it.
            output_type: "pil", "np" or "pt".
            return_dict: return a `FacePriorOutput` rather than a tuple.
            callback_on_step_end: called as (pipeline, step index, t, tensors) after every step; a "sample" in the
                dictionary that it returns replaces x_{t−1}. If it sets `pipeline._interrupt = True`, every batch
                ends at its next step, and what x0 was then is returned.
            callback_on_step_end_tensor_inputs: the tensors that it gets: "sample" (x_{t−1}) and "x0" (the
                corrected estimate, where images are in [-1, 1]), (B, 3, R, R).
            **options: options of the preset by name: `solver`, `start`, `end`, `eta`, and the method's own, for DPI
                `tau`, `late_weight`, `edge_exponent`, `stride`, `placement`, `crt`, `detail`, `smooth`,
                `rederived`; None leaves them to the preset.

        Raises:
            ImageError: an input is not an image that can be restored.
            OptionError: an option is unknown or out of its range.
        """
        counts = num_samples, batch_size = plain(num_samples), plain(batch_size)
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise OptionError(f"samples is {num_samples!r} and batch size {batch_size!r}; both must be at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise OptionError(f"output_type is {output_type!r}; choose pil, np or pt")
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise OptionError(f"callback tensors {', '.join(sorted(unknown))} are not known; choose sample and x0")
        if "steps" in options:
            raise OptionError("the number of steps is num_inference_steps here, not steps")
        chosen = find_preset(preset) if isinstance(preset, str) else preset
        given = {"steps": num_inference_steps, **options}
        chosen = chosen.with_options(**{name: plain(value) for name, value in given.items()})
        faces = [
            low_resolution(face, scale, self.resolution, blind=find_method(chosen.method).blind)
            for face in as_tensors(image)
        ]
        batches = -(-len(faces) * num_samples // self._batch_size(chosen, batch_size))
        self._interrupt = False
        with self.progress_bar(total=self.evaluations(chosen) * batches) as progress:

            def on_step(step: Step, x_prev: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
                progress.update()
                if callback_on_step_end is not None:
                    tensors = {"sample": x_prev, "x0": x0}
                    wanted = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, step.index, step.t, wanted) or {}
                    if any(value is not tensors.get(name) for name, value in changed.items() if name != "sample"):
                        raise OptionError("a callback can replace sample; x0 is only to be looked at")
                    x_prev = changed.get("sample", x_prev)
                if self.interrupt:
                    raise _InterruptedError(x0)
                return x_prev

            samples = self.restore(
                faces, generators_of(generator, len(faces)), num_samples, chosen, batch_size, on_step
            )
        doubt = self.doubt(faces, samples)
        self.maybe_free_model_hooks()
        output = FacePriorOutput(
            images=as_images(samples.flatten(0, 1), output_type),
            mean=as_images(samples.mean(1), output_type),
            doubt=None if doubt is None else as_values(doubt, output_type),
            lr_consistency=[
                value
                for own, face in zip(samples, faces, strict=True)
                for value in lr_consistency(own, face.expand(num_samples, -1, -1, -1)).tolist()
            ],
            scales=[self.resolution / face.shape[-1] for face in faces],
        )
        # not `to_tuple`, which leaves out what is None
        return output if return_dict else tuple(getattr(output, field.name) for field in fields(output))

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
        prior, corrector = self.prior, self._corrector(method)
        device, batch_size = self._execution_device, self._batch_size(preset, batch_size)
        each = in_turn if whole_batches else self._each
        sources = [source for own in generators for source in spawn_generators(own, num_samples)]
        repeated = [face for face in faces for _ in range(num_samples)]
        starts = [] if initial is None else [own.repeat_interleave(num_samples, 0) for own in initial]

        def begin(rows: slice) -> Batch:
            conditions = [face.to(device) for face in repeated[rows]]
            restoration = method.begin(conditions, prior, preset.options, corrector)
            sampler = Sampler(prior, method.solver(preset.sampling), NoiseSource(sources[rows], device))
            start = Initial(*(own[rows].to(device) for own in starts)) if starts else None
            return Batch(restoration, sampler, start)

        restored = []
        for first in range(0, len(repeated), batch_size):
            last = min(first + batch_size, len(repeated))
            size = last - first if each is in_turn else 1
            batches = each(begin, [slice(row, row + size) for row in range(first, last, size)])
            try:
                found = sample_batches(batches, steps, on_step=on_step, each=each)
            except _InterruptedError as stopped:
                found = stopped.x0
            restored.append(found.clamp(-1, 1).cpu())
        return torch.cat(restored).unflatten(0, (len(faces), num_samples))

    @property
    def _each(self) -> Callable[..., list[Any]]:
        """How images are computed: on a CPU each on a core of its own, on an accelerator a batch at once."""
        return on_cores if self._execution_device.type == "cpu" else in_turn

    def _batch_size(self, preset: Preset, batch_size: int) -> int:
        # a CPU computes an image on each core; so no more graphs than that are in memory
        differentiates = find_method(preset.method).differentiates
        at_once = torch.get_num_threads() if differentiates and self._execution_device.type == "cpu" else batch_size
        return min(batch_size, at_once)


class _InterruptedError(Exception):
    """Leaves the sampler where it is."""

    def __init__(self, x0: torch.Tensor) -> None:
        super().__init__()
        self.x0 = x0
