"""Restoring the faces of a clip, so that they do not flicker.

Frame by frame, a face would flicker for four reasons: other noise in the sampler, other noise in the input, landmarks
that jitter, and a scale that jumps. So a clip is read twice: first its faces are found and followed
(`faceprior.clips.tracks`), then each track is restored with one seed, from landmarks that are smooth in time,
at a scale that holds, from inputs averaged where the face stands still, each starting from the last result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from faceprior.clips.container import QUALITY, Frame, read_frames, rewrite
from faceprior.clips.tracks import find_cast
from faceprior.errors import DeviceError, OptionError
from faceprior.faces import DetectedFace, FaceDetector, align
from faceprior.faces.alignment import alignment
from faceprior.faces.tracking import TrackedFace
from faceprior.images import resize, to_tensor, tone_of
from faceprior.methods import find_method
from faceprior.photographs import Face, RestoreOptions, paste_faces
from faceprior.photographs.faces import kept_side
from faceprior.photographs.options import settings
from faceprior.pipeline.conversions import AUTO_SCALES, low_resolution
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.sampling import Initial

NO_FACE = "no face found"

_KEPT = 0.85  # share of the past in an input where the face stands still
_GATE = 0.75  # how large a difference to the past is taken for noise, in standard deviations of the noise
_MEDIAN_OF_NORMAL = 0.6745  # of the absolute value, in standard deviations
_NOISE_RATE = 0.2  # how fast the estimate of the noise follows


def check_options(options: RestoreOptions) -> None:
    """Check that every option that is set changes something in a clip; raises OptionError."""
    idle = {
        "--samples": options.samples > 1,
        "--sheet": options.write_sheet,
        "--face": bool(options.chosen),
        "--only-faces": options.only_faces,
        "--aligned": options.kind == "aligned",
    }
    if chosen := ", ".join(name for name, is_set in idle.items() if is_set):
        raise OptionError(f"is a clip, for which {chosen} cannot be; restore it in a run without")


def restore_clip(
    pipeline: FacePriorPipeline,
    path: Path,
    output: Path,
    options: RestoreOptions,
    detector: FaceDetector,
    on_frame: Callable[[str, int], object] = lambda _stage, _frames: None,
) -> dict[str, Any]:
    """Restore the faces of one clip; sound, times of frames and everything outside the faces stay.

    Args:
        pipeline: prior and corrector.
        path: the clip.
        output: file to write, with the suffix `faceprior.clips.output_suffix(path)`.
        options: how; the first face that appears has their seed, the next one the next.
        detector: finds the faces.
        on_frame: called after every frame with "finding" or "restoring" and the number of frames that are done.

    Returns:
        "kind" ("clip"), "seed", "frames", "tracks" (faces that were followed), "restored" (faces in all frames
        together), "notes" and "seconds".

    Raises:
        OptionError: an option is not for clips.
        VideoError: the clip cannot be read.
        OutputError: the result cannot be written; nothing half-written is left behind.
        DeviceError: the networks overflowed.
    """
    check_options(options)
    started, restorer = time.perf_counter(), ClipRestorer(pipeline, options)
    cast = find_cast(
        read_frames(path),
        detector,
        pipeline.prior.card,
        options,
        lambda frames: on_frame("finding", frames),
    )

    def change(frame: Frame) -> NDArray[np.uint8]:
        changed = restorer(frame.pixels, cast.places.get(frame.index, ()))
        on_frame("restoring", frame.index + 1)
        return changed

    made = {
        **settings(pipeline, options, detector.name),
        "input": path.name,
        "content": "video",
        "quality": QUALITY,
    }
    notes = rewrite(path, output, change, metadata=made, with_location=options.with_location)
    return {
        "kind": "clip",
        "seed": options.seed,
        "frames": cast.frames,
        "tracks": cast.tracks,
        "restored": restorer.restored,
        "notes": [*notes, *([] if cast.tracks else [NO_FACE])],
        "seconds": round(time.perf_counter() - started, 3),
    }


class _Past(NamedTuple):
    """What is known of a track from the frame before; images in [-1, 1]."""

    seen: torch.Tensor  # its input, (3, n, n)
    steady: torch.Tensor  # its input, averaged over time
    restored: torch.Tensor  # (3, R, R)
    noise: float | None = None  # standard deviation of the input's


class _Steadied(NamedTuple):
    """An input, averaged with its past."""

    input: torch.Tensor  # (3, n, n)
    still: torch.Tensor  # where the face stands still, 0 to 1, (1, n, n)
    noise: float | None  # standard deviation; None before the second frame


class ClipRestorer:
    """Restores one frame after the other; what it knows of a face it forgets when the face is gone.

    Args:
        pipeline: prior and corrector.
        options: how.

    Attributes:
        restored: faces restored so far, counted in every frame.
    """

    def __init__(self, pipeline: FacePriorPipeline, options: RestoreOptions) -> None:
        if options.upscale == "auto":
            raise OptionError("faces in a clip change their size; enlarge it by 1, 2 or 4 (--upscale)")
        if options.upscaler is not None:
            raise OptionError("a clip is enlarged by Lanczos alone; leave out --upscaler")
        self.restored = 0
        self._pipeline, self._options, self._upscale = pipeline, options, options.upscale
        self._past: dict[int, _Past] = {}

    def __call__(self, pixels: NDArray[np.uint8], places: Sequence[TrackedFace]) -> NDArray[np.uint8]:
        """Restore the faces of the next frame, RGB (H, W, 3), and return it as (H · upscale, W · upscale, 3).

        Raises:
            DeviceError: the networks overflowed.
        """
        places = [place for place in places if place.left_alone is None]
        faces = [self._face(pixels, place) for place in places]
        restored = self._restore(places, [face.low_resolution for face in faces]) if faces else []
        self.restored += len(faces)
        tone = tone_of(Image.fromarray(pixels))
        restored = [
            tone(own) if tone.holds(face.low_resolution) else own for face, own in zip(faces, restored, strict=True)
        ]
        return paste_faces(pixels, faces, restored, blend=self._options.blend, upscale=self._upscale)

    def _face(self, pixels: NDArray[np.uint8], place: TrackedFace) -> Face:
        resolution, template = self._pipeline.resolution, self._pipeline.prior.card.template
        landmarks = [(float(x), float(y)) for x, y in place.landmarks]
        aligned = to_tensor(align(Image.fromarray(pixels), landmarks, template, resolution))
        scale = self._options.scale
        if scale == "auto":
            low, high = AUTO_SCALES
            scale = min(max(resolution / place.effective_side, low), high)
        small = low_resolution(aligned, scale, resolution)
        (left, top), (right, bottom) = place.landmarks.min(0).tolist(), place.landmarks.max(0).tolist()
        return Face(
            found=DetectedFace((left, top, right, bottom), landmarks, 1.0),
            transform=alignment(landmarks, template, resolution),
            effective_side=place.effective_side,
            scale=resolution / small.shape[-1],
            low_resolution=small,
            kept_side=kept_side(self._options.scale, place.effective_side, small.shape[-1]),
            left_alone=None,
        )

    def _restore(self, places: Sequence[TrackedFace], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        past = [self._past.get(place.track) for place in places]
        steadied = [steady(seen, before) for seen, before in zip(inputs, past, strict=True)]
        generators = [torch.Generator().manual_seed((self._options.seed + place.track) % 2**63) for place in places]
        restored = self._pipeline.restore(
            [own.input for own in steadied],
            generators,
            1,
            self._options.preset,
            self._options.batch_size,
            initial=self._initial(steadied, past) if find_method(self._options.preset.method).uses_prior else None,
        )
        if not all(bool(torch.isfinite(own.images).all()) for own in restored):
            raise DeviceError("the networks overflowed; choose --dtype float32")
        self._past = {
            place.track: _Past(seen, own.input, result.mean, own.noise)  # before it was finished: it is to be again
            for place, seen, own, result in zip(places, inputs, steadied, restored, strict=True)
        }
        return [own.images[0] for own in restored]

    def _initial(self, steadied: Sequence[_Steadied], past: Sequence[_Past | None]) -> Initial:
        """The last results, known where a face stands still; of a new face nothing is known."""
        resolution = self._pipeline.resolution
        unknown = steadied[0].input.new_zeros(3, resolution, resolution)
        return Initial(
            torch.stack([unknown if before is None else before.restored for before in past]),
            torch.cat([resize(own.still[None], resolution) for own in steadied]).clamp(0, 1),
        )


def steady(seen: torch.Tensor, past: _Past | None) -> _Steadied:
    """Average an input with its past where nothing but noise has changed.

    A pixel whose surroundings differ from the past by more than the noise explains is taken from the new frame
    alone: the face moves there. The noise is measured on the difference of two frames (`noise_of`), so that a clip
    without noise is left as it is. `seen` is (3, n, n) in [-1, 1], its past of any side, or None.
    """
    if past is None:
        return _Steadied(seen, torch.zeros_like(seen[:1]), None)
    side = seen.shape[-1]
    before, average = (resize(image[None], side)[0] for image in (past.seen, past.steady))
    noise = noise_of(seen - before)
    if past.noise is not None:
        noise = past.noise + _NOISE_RATE * (noise - past.noise)
    moved = (
        F.avg_pool2d(F.pad((seen - average)[None], (1, 1, 1, 1), mode="replicate"), 3, 1)[0]
        .abs()
        .mean(0, keepdim=True)
    )
    still = torch.exp(-((moved / (_GATE * noise + 1e-6)) ** 2))
    return _Steadied(seen + _KEPT * still * (average - seen), still, noise)


def noise_of(difference: torch.Tensor) -> float:
    """Noise of one of two frames, from their difference, (3, n, n); its deviation (Immerkær 1996, by the median)."""
    kernel = difference.new_tensor(((1, -2, 1), (-2, 4, -2), (1, -2, 1))).expand(3, 1, 3, 3)
    rough = F.conv2d(difference[None], kernel, groups=3).abs()
    return float(rough.median()) / (_MEDIAN_OF_NORMAL * 6 * 2**0.5)  # 6 is the kernel's norm; two frames, √2
