"""`FacePriorPipeline`: aligned faces in, faces out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

from faceprior.cores import in_turn, on_cores
from faceprior.corrector import Correction, Corrector, embedded_corrector_for, load_corrector, save_corrector
from faceprior.devices import OutOfMemoryError, is_out_of_memory
from faceprior.doubt import error_scale, half_width
from faceprior.errors import OptionError
from faceprior.evaluation.metrics import lr_consistency
from faceprior.images import MIN_SIDE
from faceprior.methods import DEFAULT_PRESET, Preset, find_method, find_preset
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
from faceprior.priors import DEFAULT_PRIOR, ModelCard, Prior, load_prior, save_prior
from faceprior.priors.store import in_own_memory, index_entry, read_index, resolve, write_index
from faceprior.sampling import (
    Batch,
    Initial,
    NoiseSource,
    Sampled,
    Sampler,
    Step,
    sample_batches,
    spawn_generators,
)

StepCallback = Callable[["FacePriorPipeline", int, int, dict[str, Any]], dict[str, Any]]
OnSamplesStep = Callable[[Step, torch.Tensor, torch.Tensor, range], torch.Tensor]
"""As `faceprior.sampling.OnStep`, and told which of the B · N samples of `FacePriorPipeline.restore` it is about."""

_IMAGES_AT_ONCE = 8
_IMAGES_A_CORE = 2  # at once: cores that are done with a step wait for the others


class Samples(NamedTuple):
    """Restorations of one face, in [-1, 1].

    Attributes:
        images: N results, (N, 3, R, R).
        mean: mean of what was sampled, before the method finished it (`faceprior.sampling.Restoration.finish`):
            smoother than the results and nearer to the true face, (3, R, R).
    """

    images: torch.Tensor
    mean: torch.Tensor


class FacePriorOutput(NamedTuple):
    """Restored faces: B inputs, N samples of each.

    Attributes:
        images: B · N restored faces, the samples of an input side by side: a list of Pillow images, a float32
            array (B · N, R, R, 3) or a tensor (B · N, 3, R, R), in [0, 1].
        mean: mean of the samples of each input (`Samples`), as `images`, B of them.
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


class FacePriorPipeline:
    """Restores aligned low-resolution faces with a diffusion prior, by DPI or any other method.

    `faceprior.diffusers.FacePriorPipeline` is the same as a diffusers pipeline.

    Args:
        prior: the diffusion model, as `faceprior.priors.load_prior` loads it.
        crt: the corrector, as `faceprior.corrector.load_corrector` loads it; None restores without.
    """

    _callback_tensor_inputs = ("sample", "x0")
    _interrupt = False

    def __init__(self, prior: Prior, crt: Corrector | None = None) -> None:
        self.prior, self.crt = prior, crt
        self._progress_bar_config: dict[str, Any] = {}
        self._fitting: dict[tuple[torch.device, str], int] = {}
        for network in self._networks:
            in_own_memory(network)
        self.to()  # networks lie in memory as after loading, so results are the same to the last bit

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = DEFAULT_PRIOR,
        *,
        corrector: str | Path | None = "auto",
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> FacePriorPipeline:
        """Load a prior and its corrector.

        Args:
            pretrained_model_name_or_path: name of an embedded prior, diffusers folder, hub id or ADM checkpoint file.
            corrector: name, folder or hub id; "auto" takes what was saved with the prior, and where the folder says
                nothing about a corrector the embedded one of the same resolution and noise schedule, if there is one;
                None or "none" takes none.
            torch_dtype: number format to compute in; None is float32.
            **options: see `load_components`; others are a TypeError.

        Raises:
            WeightsError: something is not found, not safe, or does not fit.
            OptionError: the corrector does not fit the prior.
        """
        return cls(*load_components(pretrained_model_name_or_path, corrector, **options)).to(dtype=torch_dtype)

    def save_pretrained(
        self, save_directory: str | Path, *, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write prior, noise schedule, corrector and cards as a diffusers folder that `from_pretrained` reads.

        Args:
            save_directory: the folder; made if it is missing.
            safe_serialization: weights as safetensors rather than pickled.
            variant: "fp16" and the like: part of the weights' file names; their numbers stay as they are.
        """
        folder, crt = Path(save_directory), self.crt
        how: dict[str, Any] = {"variant": variant, "safe_serialization": safe_serialization}
        save_prior(self.prior, folder, half=False, **how)
        if crt is not None:
            save_corrector(crt, folder / "corrector", half=False, **how)
        components = {name: entry for name, entry in read_index(folder).items() if not name.startswith("_")}
        write_index(folder, **{**components, "corrector": index_entry(crt.network) if crt else [None, None]})

    def to(self, *args: Any, **kwargs: Any) -> FacePriorPipeline:
        """Move and cast the networks, as `torch.nn.Module.to` does."""
        for network in self._networks:
            nn.Module.to(network, *args, **kwargs, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def without_corrector(self) -> FacePriorPipeline:
        """Return a pipeline of the same prior, not a copy of it, that restores without a corrector."""
        return FacePriorPipeline(self.prior)

    @property
    def card(self) -> ModelCard:
        """What the prior is."""
        return self.prior.card

    @property
    def corrector_card(self) -> ModelCard | None:
        """What the corrector is, if there is one."""
        return self.crt.card if self.crt else None

    @property
    def resolution(self) -> int:
        """Side R of restored faces, in pixels."""
        return self.card.resolution

    def progress_bar(self, *, total: int) -> Any:
        """Return a bar of evaluations, as diffusers' pipelines have it."""
        return tqdm(total=total, **self._progress_bar_config)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set options of tqdm for the bar, `disable=True` for none."""
        self._progress_bar_config = options

    @property
    def _networks(self) -> list[nn.Module]:
        return [self.prior.network, *([self.crt.network] if self.crt else [])]

    @property
    def _execution_device(self) -> torch.device:
        return self.prior.device

    def check(self, preset: Preset) -> None:
        """Check that options fit the prior and the corrector before any work is done; raises OptionError."""
        method = find_method(preset.method)
        self._steps(preset)
        method.solver(preset.sampling)
        face = torch.zeros(3, MIN_SIDE, MIN_SIDE)
        method.begin([face], self.prior, preset.options, self.crt if method.uses_corrector else None)

    @torch.no_grad()
    def expected(self, faces: Sequence[torch.Tensor]) -> list[Correction | None]:
        """What the corrector expects of each low-resolution face (3, n, n), as a batch of one; None without one."""
        corrector, device = self.crt, self._execution_device
        if corrector is None:
            return [None] * len(faces)
        return self._each(lambda face: corrector.alone(corrector.network.see(face[None].to(device))), faces)

    def doubt(self, faces: Sequence[torch.Tensor], samples: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Half-width of a 90 % interval around the first of each face's samples, (N, 3, R, R); see `faceprior.doubt`.

        Returns (B, R, R), on the scale of [0, 1] pixel values; None where it is not known.
        """
        calibration = (self.corrector_card or self.card).calibration

        def width(face: torch.Tensor, own: torch.Tensor, expected: Correction | None) -> torch.Tensor | None:
            scale = error_scale(own[0], expected, own)
            return None if scale is None else half_width(scale, calibration, self.resolution / face.shape[-1])

        widths = self._each(width, faces, samples, self.expected(faces))
        return None if any(own is None for own in widths) else torch.stack(widths)

    def evaluations(self, preset: Preset) -> int:
        """How often a restoration asks the prior, and calls `on_step`: its steps, less those that go up."""
        return sum(not step.rises for step in self._steps(preset))

    def batch_size(self, preset: Preset, asked: int | None = None) -> int:
        """How many samples go through the networks together, fewer than asked for if those did not fit into memory.

        None takes eight, or two for each core of a CPU if that is more.
        """
        device, method = self._execution_device, find_method(preset.method)
        cores = torch.get_num_threads() if device.type == "cpu" else 0
        size = asked or max(_IMAGES_AT_ONCE, _IMAGES_A_CORE * cores)
        if cores and method.differentiates:  # so no more graphs are in memory than there are cores
            size = min(size, cores)
        return min(size, self._fitting.get((device, preset.method), size))

    def _steps(self, preset: Preset) -> list[Step]:
        return find_method(preset.method).steps(self.prior.schedule, preset.sampling, preset.options)

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
        batch_size: int | None = None,
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
            batch_size: samples that go through the networks together; None finds it. Where they do not fit into the
                device's memory they are halved, with a warning, and later calls begin there. No result depends on it.
            output_type: "pil", "np" or "pt".
            return_dict: return a `FacePriorOutput` rather than a tuple.
            callback_on_step_end: called as (pipeline, step index, t, tensors) after every step; a "sample" in the
                dictionary that it returns replaces x_{t−1}. If it sets `pipeline._interrupt = True`, every batch
                ends at its next step, and what x0 was then is returned.
            callback_on_step_end_tensor_inputs: the tensors that it gets: "sample" (x_{t−1}) and "x0" (the
                corrected estimate, where images are in [-1, 1]), (B, 3, R, R).
            **options: options of the preset by name: `solver`, `start`, `end`, `eta`, `shift`, and the method's own,
                for DPI `tau`, `late_weight`, `edge_exponent`, `stride`, `placement`, `crt`, `detail`,
                `detail_above`, `smooth`, `rederived`, `deviation`, `texture`; None leaves them to the preset.

        Raises:
            ImageError: an input is not an image that can be restored.
            OptionError: an option is unknown or out of its range.
        """
        num_samples, batch_size = plain(num_samples), plain(batch_size)
        counts = [num_samples] if batch_size is None else [num_samples, batch_size]
        if not all(isinstance(count, int) and count >= 1 for count in counts):
            raise OptionError(f"samples is {num_samples!r} and batch size {batch_size!r}; both must be at least 1")
        if output_type not in ("pil", "np", "pt"):
            raise OptionError(f"output_type is {output_type!r}; choose pil, np or pt")
        # diffusers' callbacks say themselves which tensors they want
        callback_on_step_end_tensor_inputs = getattr(
            callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs
        )
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
        self._interrupt = False
        with self.progress_bar(total=self.evaluations(chosen) * len(faces) * num_samples) as progress:

            def on_step(step: Step, x_prev: torch.Tensor, x0: torch.Tensor, _rows: range) -> torch.Tensor:
                progress.update(len(x0))
                if callback_on_step_end is not None:
                    tensors = {"sample": x_prev, "x0": x0}
                    wanted = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = callback_on_step_end(self, step.index, step.t, wanted) or {}
                    if any(value is not tensors.get(name) for name, value in changed.items() if name != "sample"):
                        raise OptionError("a callback can replace sample; x0 is only to be looked at")
                    x_prev = changed.get("sample", x_prev)
                if self._interrupt:
                    raise _InterruptedError(x0)
                return x_prev

            samples = self.restore(
                faces, generators_of(generator, len(faces)), num_samples, chosen, batch_size, on_step
            )
        images = [own.images for own in samples]
        doubt = self.doubt(faces, images)
        output = FacePriorOutput(
            images=as_images(torch.cat(images), output_type),
            mean=as_images(torch.stack([own.mean for own in samples]), output_type),
            doubt=None if doubt is None else as_values(doubt, output_type),
            lr_consistency=[
                value
                for own, face in zip(images, faces, strict=True)
                for value in lr_consistency(own, face.expand(num_samples, -1, -1, -1)).tolist()
            ],
            scales=[self.resolution / face.shape[-1] for face in faces],
        )
        return output if return_dict else tuple(output)

    @torch.inference_mode(mode=False)  # inside it there are no gradients, which some methods take
    def restore(
        self,
        faces: Sequence[torch.Tensor],
        generators: Sequence[torch.Generator],
        num_samples: int,
        preset: Preset,
        batch_size: int | None = None,
        on_step: OnSamplesStep | None = None,
        initial: Initial | None = None,
        *,
        on_notice: Callable[[str], object] = warnings.warn,
        whole_batches: bool = False,
    ) -> list[Samples]:
        """Restore low-resolution faces as they are; returns the samples of each, on the CPU.

        Args:
            faces: B of them, each (3, n, n) in [-1, 1].
            generators: one for each face; its samples' generators are derived from it.
            num_samples: samples N of each face.
            preset: all options.
            batch_size: see `batch_size`. Where so many do not fit into the device's memory they are halved.
            on_step: called after every step. A batch that was halved begins anew with the first one.
            initial: clean faces to start from, one for each face; None leaves the start to the method.
            on_notice: called with a sentence for the user when a batch is halved.
            whole_batches: networks see whole batches on a CPU too: faster, but the last bits of a result depend on
                its batch. For measuring many faces; a result that someone keeps is made without.

        Raises:
            OptionError: initial faces are given to a method that cannot start from them.
            OutOfMemoryError: not even one face fits.
        """
        method, steps = find_method(preset.method), self._steps(preset)
        prior, device = self.prior, self._execution_device
        corrector = self.crt if method.uses_corrector else None
        each = in_turn if whole_batches else self._each
        sources = [source for own in generators for source in spawn_generators(own, num_samples)]
        repeated = [face for face in faces for _ in range(num_samples)]
        starts = [] if initial is None else [own.repeat_interleave(num_samples, 0) for own in initial]

        def begin(rows: slice) -> Batch:
            conditions = [face.to(device) for face in repeated[rows]]
            restoration = method.begin(conditions, prior, preset.options, corrector)
            noise = NoiseSource([own.clone_state() for own in sources[rows]], device)  # which may be asked for again
            start = Initial(*(own[rows].to(device) for own in starts)) if starts else None
            return Batch(restoration, Sampler(prior, method.solver(preset.sampling), noise), start)

        def sampled(rows: range) -> Sampled | None:
            def stepped(step: Step, x_prev: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
                return x_prev if on_step is None else on_step(step, x_prev, x0, rows)

            size = len(rows) if each is in_turn else 1
            try:
                batches = each(begin, [slice(row, row + size) for row in rows[::size]])
                return sample_batches(batches, steps, on_step=stepped, each=each)
            except _InterruptedError as stopped:
                return Sampled(stopped.x0, stopped.x0)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return None

        restored = self._in_batches(sampled, len(repeated), preset, batch_size, on_notice)
        samples, results = (torch.cat(own).split(num_samples) for own in zip(*restored, strict=True))
        return [Samples(images, own.mean(0)) for images, own in zip(results, samples, strict=True)]

    def _in_batches(
        self,
        sampled: Callable[[range], Sampled | None],
        count: int,
        preset: Preset,
        batch_size: int | None,
        on_notice: Callable[[str], object],
    ) -> list[Sampled]:
        """Sample so many images, in batches that are halved as long as they do not fit."""
        device, found = self._execution_device, list[Sampled]()
        done = 0
        while done < count:
            rows = range(done, min(done + self.batch_size(preset, batch_size), count))
            batch = sampled(rows)
            if batch is not None:
                found.append(Sampled(*(images.clamp(-1, 1).cpu() for images in batch)))
                done = rows.stop
            elif len(rows) == 1:
                raise OutOfMemoryError(device)
            else:
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                half = self._fitting[device, preset.method] = len(rows) // 2
                on_notice(f"{len(rows)} faces at once do not fit into the memory of {device}; going on with {half}")
        return found

    @property
    def _each(self) -> Callable[..., list[Any]]:
        """How images are computed: on a CPU each on a core of its own, on an accelerator a batch at once."""
        return on_cores if self._execution_device.type == "cpu" else in_turn


class _InterruptedError(Exception):
    """Leaves the sampler where it is."""

    def __init__(self, x0: torch.Tensor) -> None:
        super().__init__()
        self.x0 = x0


def load_components(
    source: str | Path,
    corrector: str | Path | None = "auto",
    adm_config: Path | None = None,
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Prior, Corrector | None]:
    """Load a prior and the corrector that goes with it.

    Args:
        source: see `FacePriorPipeline.from_pretrained`.
        corrector: see there.
        adm_config: for an ADM checkpoint file, a JSON or YAML file of its architecture flags.
        variant: "fp16" and the like: of several sets of weights in the folder, the one with this in its name.
        use_safetensors: True refuses pickled weights, False takes only them; None takes safetensors where there
            are both.
        revision: branch, tag or commit of the prior's repository on the hub.
        cache_dir: where downloads are kept.
        token: for the hub.
        local_files_only: don't ask the hub.
        force_download: download again.

    Raises:
        WeightsError: something is not found, not safe, or does not fit.
        OptionError: the corrector does not fit the prior.
    """
    how: dict[str, Any] = {"variant": variant, "use_safetensors": use_safetensors}
    hub: dict[str, Any] = {"cache_dir": cache_dir, "token": token}
    hub |= {"local_files_only": local_files_only, "force_download": force_download}
    prior = load_prior(source, adm_config, **how, revision=revision, **hub)
    if corrector is None or corrector == "none":
        return prior, None
    if corrector == "auto":
        here = {**hub, "local_files_only": True, "force_download": False}  # it was downloaded with the prior
        folder = resolve(source, "prior", **here, revision=revision)
        index = read_index(folder)
        if "corrector" not in index:
            return prior, embedded_corrector_for(prior)
        if index["corrector"][0] is None:
            return prior, None
        crt = load_corrector(folder / "corrector", **how)
    else:
        crt = load_corrector(corrector, **hub)
    crt.check(prior.resolution, prior.schedule, crt.network.stride)
    return prior, crt
