"""From a prepared picture and its restored faces to the files of the results, and a record of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from faceprior.errors import DeviceError, FacePriorError
from faceprior.faces.paste import enlarge
from faceprior.images import (
    SUFFIXES,
    Picture,
    decode_picture,
    encode_picture,
    encode_png,
    format_of,
    spread_under,
    to_pil,
)
from faceprior.images.metadata import without_location
from faceprior.photographs.faces import Face, needed_upscale, paste_faces
from faceprior.photographs.options import RestoreOptions, sample_suffix
from faceprior.photographs.prepare import Prepared
from faceprior.photographs.results import RestoredFace, doubt_picture, sheet
from faceprior.photographs.upscaler import load_upscaler
from faceprior.pipeline.face_prior import Samples


@dataclass(frozen=True)
class ResultFile:
    """A file to write.

    Attributes:
        suffix: what is appended to the name of the results, "" for the first.
        ending: of the file's name, ".jpg".
        content: what is in it.
        copied: whether it is the input itself.
        extra: whether the others are of use without it.
    """

    suffix: str
    ending: str
    content: bytes
    copied: bool = False
    extra: bool = False


@dataclass(frozen=True)
class Composed:
    """The results of a picture.

    Attributes:
        files: to write.
        record: what there is to say of them, as JSON has it (docs/folders.md).
    """

    files: tuple[ResultFile, ...]
    record: dict[str, Any]


def compose(
    prepared: Prepared,
    samples: Sequence[Samples | FacePriorError],
    made: Mapping[str, Any],
    options: RestoreOptions = RestoreOptions(),
    doubt: Sequence[torch.Tensor | None] | torch.Tensor | None = None,
) -> Composed:
    """Put restored faces back into their picture.

    Args:
        prepared: the picture.
        samples: of each of its conditions, or why there are none.
        made: how they were made (`how_made`); goes into every file.
        options: as the picture was prepared and restored.
        doubt: of each condition, (R, R), see `RestoredFace`; None where it is not known.

    Raises:
        FacePriorError: the first of the samples that is one.
        DeviceError: the networks overflowed.
        ImageError: the photograph is too large to be enlarged so much.
        OutputError: its format does not hold the result.
        OptionError: its format needs an extra to be written.
    """
    picture = decode_picture(prepared.content, prepared.name, options.max_pixels)
    found = [_checked(own, made) for own in samples]
    made = {**made, "input": prepared.name, "notes": list(prepared.notes)}
    results = {
        condition.index: RestoredFace(condition.low_resolution, own.images, own.mean, unsure)
        for condition, own, unsure in zip(
            prepared.conditions, found, [None] * len(found) if doubt is None else doubt, strict=True
        )
    }
    if prepared.aligned or options.only_faces:
        return _faces(prepared, results, made, options)
    return _photograph(prepared, picture, results, made, options)


def _checked(samples: Samples | FacePriorError, made: Mapping[str, Any]) -> Samples:
    if isinstance(samples, FacePriorError):
        raise samples
    if not bool(torch.isfinite(samples.images).all()):
        raise DeviceError(f"the networks overflowed in {made['dtype']}; choose --dtype float32")
    return samples


def _faces(
    prepared: Prepared, results: Mapping[int, RestoredFace], made: Mapping[str, Any], options: RestoreOptions
) -> Composed:
    """Each face for itself: those of a photograph, or the one that the picture is."""
    files, notes = list[ResultFile](), list(prepared.notes)
    for index, result in results.items():
        own = {**made, "scale": result.scale}
        if not prepared.aligned:
            own |= {"face": index + 1, "box": _about(prepared.faces[index], result)["box"]}
        files += _files_of(f"-face{index + 1}" if options.only_faces else "", result, own, options, notes)
    if not prepared.aligned:
        return Composed(tuple(files), _photo_record(prepared, results, options, notes))
    (result,) = results.values()
    record = {"kind": "aligned", "scale": result.scale, "seed": options.seed, "notes": notes, **_trust(result)}
    return Composed(tuple(files), record)


def _photograph(
    prepared: Prepared,
    picture: Picture,
    results: Mapping[int, RestoredFace],
    made: Mapping[str, Any],
    options: RestoreOptions,
) -> Composed:
    notes = list(prepared.notes)
    record = _photo_record(prepared, results, options, notes)
    ending, faces = options.ending or PurePath(prepared.name).suffix, [prepared.faces[index] for index in results]
    upscale = needed_upscale(faces, prepared.size) if options.upscale == "auto" else options.upscale
    enlarger = enlarge if options.upscaler is None else load_upscaler(options.upscaler)
    same = picture
    if options.ending is not None:
        picture = replace(picture, format=format_of(ending))
    if not options.with_location:
        exif, xmp = without_location(picture.exif, picture.xmp)
        picture = replace(picture, exif=exif, xmp=xmp)
    unchanged = (picture.format, picture.exif, picture.xmp) == (same.format, same.exif, same.xmp)
    if not results and upscale == 1 and unchanged:
        return Composed((ResultFile("", ending, prepared.content, copied=True),), record)
    if format_of(ending) != picture.written_as:
        ending = SUFFIXES[picture.written_as][0]
    record["upscale"] = upscale
    made = {**made, "upscale": upscale, "blend": options.blend, "faces": record["faces"]}

    def pasted(suffix: str, images: Sequence[torch.Tensor], content: Mapping[str, Any]) -> ResultFile:
        own = [picture.from_srgb(image) for image in images]
        around = picture.pixels
        if upscale > 1 and picture.alpha is not None:
            around = spread_under(around, picture.alpha)
        pixels = paste_faces(around, faces, own, blend=options.blend, upscale=upscale, enlarger=enlarger)
        whole = encode_picture(pixels, picture, {**made, **content}, name=prepared.name)
        return ResultFile(suffix, ending, whole)

    files = [
        pasted(
            sample_suffix(number),
            [result.images[number - 1] for result in results.values()],
            {"content": "photo", "sample": number},
        )
        for number in range(1, options.samples + 1 if results else 2)
    ]
    if results and options.samples > 1:
        means = [result.mean for result in results.values()]
        files.append(pasted("-mean", means, {"content": "photo of the mean", "samples": options.samples}))
    if results and options.write_sheet:
        files += _sheet("", list(results.values()), {**made, "content": "sheet"}, notes)
    return Composed(tuple(files), record)


def _files_of(
    suffix: str, result: RestoredFace, made: Mapping[str, Any], options: RestoreOptions, notes: list[str]
) -> Iterator[ResultFile]:
    """All that there is of a face: samples, mean and doubt of several, and a sheet if it is wanted."""

    def file(kind: str, image: Image.Image, content: Mapping[str, Any]) -> ResultFile:
        ending = options.ending or ".png"
        like = Picture(image, (), np.asarray(image), None, "PNG")
        own = encode_picture(like.pixels, like, {**made, **content}, format_of(ending))
        return ResultFile(f"{suffix}{kind}", ending, own)

    samples = len(result.images)
    for number, (image, agreement) in enumerate(zip(result.images, result.lr_consistency, strict=True), 1):
        own = {"content": "sample", "sample": number, "lr_consistency": round(agreement, 3)}
        yield file(sample_suffix(number), to_pil(image), own)
    if samples > 1:
        yield file("-mean", to_pil(result.mean), {"content": "mean", "samples": samples})
        if result.doubt is not None:
            doubt = encode_png(doubt_picture(result.doubt), {**made, "content": "doubt", "samples": samples})
            yield ResultFile(f"{suffix}-doubt", ".png", doubt)
    if options.write_sheet:
        yield from _sheet(suffix, [result], {**made, "content": "sheet", "samples": samples}, notes)


def _sheet(suffix: str, results: Sequence[RestoredFace], made: dict[str, Any], notes: list[str]) -> list[ResultFile]:
    """Faces on a sheet, a row for each; a note where it cannot be made, which is no reason to lose the results."""
    try:
        rows = [result.pictures() for result in results]
        labelled = [
            (f"face {number}: {label}" if len(rows) > 1 else label, image)
            for number, row in enumerate(rows, 1)
            for label, image in row
        ]
        drawn = sheet(labelled, columns=len(rows[0]) if len(rows) > 1 else 4)
        return [ResultFile(f"{suffix}-sheet", ".png", encode_png(drawn, made), extra=True)]
    except (FacePriorError, OSError, MemoryError, ValueError) as error:
        notes.append(f"no sheet: {error or type(error).__name__}")
        return []


def _photo_record(
    prepared: Prepared, results: Mapping[int, RestoredFace], options: RestoreOptions, notes: list[str]
) -> dict[str, Any]:
    faces = [_about(face, results.get(index)) for index, face in enumerate(prepared.faces)]
    return {"kind": "photo", "seed": options.seed, "notes": notes, "faces": faces}


def _about(face: Face, result: RestoredFace | None) -> dict[str, Any]:
    left, top, right, bottom = (round(value, 1) for value in face.found.box)
    record: dict[str, Any] = {
        "box": [left, top, right, bottom],
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.found.landmarks],
        "score": round(face.found.score, 3),
        "effective_side": round(face.effective_side, 1),
        "scale": face.scale,
    }
    if face.left_alone is not None:
        record["left_alone"] = face.left_alone
    return record if result is None else {**record, **_trust(result)}


def _trust(result: RestoredFace) -> dict[str, Any]:
    """How far a restored face can be trusted: agreement with its input, and the mean doubt where it is known."""
    record: dict[str, Any] = {"lr_consistency": [round(value, 3) for value in result.lr_consistency]}
    if result.doubt is not None:
        record["doubt"] = round(float(result.doubt.mean()), 4)
    return record
