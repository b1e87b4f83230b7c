"""Flicker of clips, followed and frame by frame: python -m benchmarks.flicker [CLIP...] (needs the extra "video").

Both are measured on the frames as a viewer sees them, at faces that are aligned by the same smooth landmarks; on a
clip that was made from a photograph the truth is known too, and with it the PSNR.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, get_args

import numpy as np
import torch
import typer
from benchmarks.common import load, show
from numpy.typing import NDArray
from PIL import Image

from faceprior.clips.container import Frame, load_av, read_frames
from faceprior.clips.restore import ClipRestorer
from faceprior.clips.tracks import find_cast
from faceprior.errors import DataError, FacePriorError
from faceprior.evaluation.metrics import psnr
from faceprior.faces import FaceDetector, Points, align, load_detector
from faceprior.faces.tracking import TrackedFace
from faceprior.images import to_tensor, to_uint8
from faceprior.methods import find_preset
from faceprior.photographs import RestoreOptions
from faceprior.pipeline.face_prior import FacePriorPipeline

Motion = Literal["still", "moving"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)

SIDE = 224  # of a made clip, in pixels
REDUCTION = 4
NOISE = 3.0  # standard deviation, in grey levels of 255
RATE = 25

Truth = Callable[[int], NDArray[np.uint8]]
"""The sharp frame of an index."""


@dataclass
class ClipFigures:
    """What was measured on one clip, for the input and for each way to restore it.

    Attributes:
        name: of the clip.
        frames: of the clip.
        flicker: of consecutive faces, in grey levels of 255, by way.
        psnr: against the true faces, in dB, by way; empty where the truth is not known.
        true_flicker: of the true faces, in grey levels; None where the truth is not known.
    """

    name: str
    frames: int
    flicker: dict[str, float]
    psnr: dict[str, float] = field(default_factory=dict)
    true_flicker: float | None = None


def flicker(faces: torch.Tensor, next_faces: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of consecutive aligned faces, in grey levels of 255, after rounding to uint8.

    It counts what truly moves too: a mouth, or light. So it is to be compared with the input's own, or with that of
    the true faces. (B, 3, R, R) in [-1, 1] twice → (B,).
    """
    return (to_uint8(next_faces).float() - to_uint8(faces).float()).abs().mean((1, 2, 3))


def measure_clip(
    pipeline: FacePriorPipeline,
    path: Path,
    detector: FaceDetector,
    options: RestoreOptions,
    truth: Truth | None = None,
) -> ClipFigures:
    """Restore a clip in both ways and measure them; nothing is written.

    Args:
        pipeline: prior and corrector.
        path: the clip.
        detector: finds the faces.
        options: how both restore.
        truth: the sharp frames, if they are known.

    Raises:
        VideoError: the clip cannot be read.
        DataError: no face is seen in two frames in a row.
    """
    card = pipeline.prior.card
    cast = find_cast(read_frames(path), detector, card, options)
    ours, alone = ClipRestorer(pipeline, options), _FrameByFrame(pipeline, detector, options)
    changes: dict[str, list[float]] = {}
    fidelity: dict[str, list[float]] = {}
    before: dict[int, dict[str, torch.Tensor]] = {}
    for frame in read_frames(path):
        places = [place for place in cast.places.get(frame.index, ()) if place.left_alone is None]
        pictures = {"input": frame.pixels, "frame by frame": alone(frame), "tracked": ours(frame.pixels, places)}
        if truth is not None:
            pictures["truth"] = truth(frame.index)
        now = {place.track: _faces(pictures, place, card.template, pipeline.resolution) for place in places}
        for track, faces in now.items():
            for way, face in faces.items():
                if track in before:
                    changes.setdefault(way, []).append(float(flicker(before[track][way][None], face[None])))
                if truth is not None and way != "truth":
                    fidelity.setdefault(way, []).append(float(psnr(face[None], faces["truth"][None])))
        before = now
    if not changes:
        raise DataError(f"{path}: no face to restore is seen in two frames in a row; choose another clip")
    mean = {way: fmean(values) for way, values in changes.items()}
    return ClipFigures(
        path.stem,
        cast.frames,
        {way: value for way, value in mean.items() if way != "truth"},
        {way: fmean(values) for way, values in fidelity.items()},
        mean.get("truth"),
    )


class _FrameByFrame:
    """Restores every frame as if it were a photograph: found anew, with other noise."""

    def __init__(self, pipeline: FacePriorPipeline, detector: FaceDetector, options: RestoreOptions) -> None:
        self._restorer = ClipRestorer(pipeline, options)
        self._card, self._detector, self._options = pipeline.prior.card, detector, options
        self._seen = 0

    def __call__(self, frame: Frame) -> NDArray[np.uint8]:
        cast = find_cast([replace(frame, index=0)], self._detector, self._card, self._options)
        own = [replace(place, track=self._seen + number) for number, place in enumerate(cast.places.get(0, ()))]
        self._seen += len(own)  # a face that was never seen has no past, and a seed of its own
        return self._restorer(frame.pixels, own)


def _faces(
    pictures: dict[str, NDArray[np.uint8]], place: TrackedFace, template: Points, side: int
) -> dict[str, torch.Tensor]:
    return {
        way: to_tensor(align(Image.fromarray(pixels), place.landmarks.tolist(), template, side))
        for way, pixels in pictures.items()
    }


@contextmanager
def made_clip(motion: Motion, frames: int, seed: int = 0) -> Iterator[tuple[Path, Truth]]:
    """Make a clip of scikit-image's astronaut: a blurred, noisy, compressed face, and the sharp frames to it.

    Every frame is reduced to a quarter, gets fresh Gaussian noise, is enlarged again and goes through H.264 (CRF 23).

    Args:
        motion: "still", or "moving": the camera sways, turns by ±4° and zooms by ±5 %.
        frames: how many, 25 a second.
        seed: of the noise.

    Yields:
        The clip, which is gone afterwards, and its truth.

    Raises:
        FacePriorError: scikit-image is not installed.
    """
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise FacePriorError(
            "the made clips' photograph comes with scikit-image: pip install scikit-image"
        ) from error
    photo, generator = Image.fromarray(astronaut()), np.random.default_rng(seed)

    def truth(index: int) -> NDArray[np.uint8]:
        return np.asarray(_view(photo, index / RATE if motion == "moving" else 0.0))

    def bad() -> Iterator[NDArray[np.uint8]]:
        for index in range(frames):
            small = Image.fromarray(truth(index)).resize((SIDE // REDUCTION,) * 2, Image.Resampling.BICUBIC)
            noisy = np.asarray(small) + generator.normal(0, NOISE, (*small.size, 3))
            small = Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))
            yield np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    with tempfile.TemporaryDirectory(prefix="faceprior-") as folder:
        path = Path(folder) / f"{motion}.mp4"
        _write_clip(path, bad())
        yield path, truth


def _write_clip(path: Path, frames: Iterable[NDArray[np.uint8]]) -> None:
    av = load_av()
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=RATE)
        video.width, video.height, video.pix_fmt, video.options = SIDE, SIDE, "yuv420p", {"crf": "23"}
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())


def _view(photo: Image.Image, seconds: float) -> Image.Image:
    """What a swaying camera sees around the face at a time; at 0 it looks straight."""
    turn = math.radians(4 * math.sin(2 * seconds))
    zoom = 1 + 0.05 * math.sin(3 * seconds)
    middle_x, middle_y = 224 + 8 * math.sin(2.5 * seconds), 140 + 5 * math.sin(4 * seconds)
    a, b = zoom * math.cos(turn), zoom * math.sin(turn)
    half = SIDE / 2
    matrix = (a, b, middle_x - half * (a + b), -b, a, middle_y - half * (a - b))
    return photo.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def main(
    clips: Annotated[list[Path] | None, typer.Argument(help="None makes two, whose truth is known.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of the clips that are made.")] = 25,
    preset: str = "default",
    steps: Annotated[int, typer.Option(help="0 leaves them to the preset.")] = 0,
    prior: str = "",
    seed: int = 0,
) -> None:
    """Measure how much restored faces flicker; the input's own is what truly moves and its noise."""
    pipeline, detector = load(prior), load_detector()
    how = RestoreOptions(preset=find_preset(preset).with_options(steps=steps or None), seed=seed)
    found = [measure_clip(pipeline, path, detector, how) for path in clips or ()]
    for motion in () if clips else MOTIONS:
        with made_clip(motion, frames, seed) as (path, truth):
            found.append(measure_clip(pipeline, path, detector, how, truth))
    rows = []
    for own in found:
        for way, value in own.flicker.items():
            fidelity = f"{own.psnr[way]:.2f}" if way in own.psnr else ""
            rows.append((own.name, own.frames, way, f"{value:.2f}", f"{value - own.flicker['input']:+.2f}", fidelity))
        if own.true_flicker is not None:
            rows.append((own.name, own.frames, "truth", f"{own.true_flicker:.2f}", "", ""))
    show("Flicker, in grey levels of 255", ("clip", "frames", "restored", "flicker", "above the input", "PSNR"), rows)


if __name__ == "__main__":
    typer.run(main)
