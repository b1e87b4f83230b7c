"""Training sets: aligned faces packed into one uint8 `.npy` file, (N, R, R, 3), with a manifest of a row for each.

Training maps it into memory (`numpy.load(..., mmap_mode="r")`): nothing is decoded twice.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from faceprior.errors import DataError, ImageError, OptionError
from faceprior.images import IMAGE_SUFFIXES, decode_picture, read_image, square
from faceprior.images.writing import write_file
from faceprior.priors.card import Landmarks, ModelCard

MANIFEST = "manifest.json"
FORMAT = "faceprior-shards/2"
FACES = "faces.npy"

_COLUMNS = "shard, source, terms and licence"
_DESCRIBING = frozenset({"shard", "file", "source", "terms", "licence", None})  # None: cells beyond the header


@dataclass(frozen=True)
class PackedFace:
    """Where a face came from.

    Attributes:
        name: name of the original file.
        split: "train" or "val".
        source: collection that it belongs to.
        terms: "open", "research" or "unknown": what the collection's licence allows.
        licence: the licence in words.
        labels: further columns of the folder's `index.csv`, by name; empty ones are left out.
    """

    name: str
    split: str
    source: str
    terms: str
    licence: str
    labels: dict[str, str]


class PackReport(NamedTuple):
    """What `pack` wrote: faces by split, and a line for every file that it could not use."""

    faces: dict[str, int]
    problems: list[str]


def pack(
    folders: Sequence[Path],
    output: Path,
    *,
    size: int = 128,
    held_out: float = 0.02,
    on_face: Callable[[], object] = lambda: None,
) -> PackReport:
    """Pack folders of aligned faces.

    A folder holds pictures, or tars of pictures (`val*.tar` is the held-out part), either with an optional
    `index.csv` whose columns `file`, `source`, `terms`, `licence` and (for tars) `shard` describe them; whatever
    other columns it has become labels. Loose pictures are held out by a hash of their name, so the split survives
    additions; of a set too small for that share, one is.

    Args:
        folders: folders to read.
        output: folder for the set; must not hold a manifest yet.
        size: side of the packed faces, in pixels.
        held_out: share of loose pictures that go to the "val" split, 0 to 1; 0 holds none out.
        on_face: called after every face, for a progress bar.

    Raises:
        DataError: the output is taken, a folder is missing, or no face was found at all.
    """
    if (output / MANIFEST).exists():
        raise DataError(f"{output / MANIFEST} exists; remove the folder or choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    faces: list[PackedFace] = []
    problems: list[str] = []
    with (output / FACES).open("wb") as file:
        _write_header(file, 0, size)
        for folder in folders:
            for picture, face in _pictures(folder, held_out, problems):
                pixels = square(picture).resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
                faces.append(face)
                file.write(np.asarray(pixels).tobytes())
                on_face()
        file.seek(0)
        _write_header(file, len(faces), size)
    if not faces:
        raise DataError(f"no face was found in {', '.join(map(str, folders))}")
    if held_out > 0 and len(faces) > 1 and all(face.split == "train" for face in faces):
        first = min(range(len(faces)), key=lambda index: _hash(faces[index].name))
        faces[first] = replace(faces[first], split="val")
    manifest = {"format": FORMAT, "size": size, "faces": [asdict(face) for face in faces]}
    write_file(output / MANIFEST, json.dumps(manifest, ensure_ascii=False).encode())
    return PackReport(dict(Counter(face.split for face in faces)), problems)


def _write_header(file: BinaryIO, count: int, size: int) -> None:
    # numpy leaves room for the first axis to grow: the header is as long for any count
    shape = (count, size, size, 3)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _hash(name: str) -> float:
    """A number from 0 to 1 that depends on nothing but the name."""
    return crc32(name.encode()) / 2**32


def _pictures(folder: Path, held_out: float, problems: list[str]) -> Iterator[tuple[Image.Image, PackedFace]]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    index = _read_index(folder / "index.csv")

    def described(name: str, split: str, shard: str = "") -> PackedFace:
        row = index.get((shard, name)) or index.get(("", name)) or {}
        source, terms, licence = row.get("source"), row.get("terms"), row.get("licence")
        labels = {column: text for column, text in row.items() if column not in _DESCRIBING and text}
        return PackedFace(name, split, source or folder.name, terms or "unknown", licence or "unknown", labels)

    for path in sorted(folder.glob("*.tar")):
        split = "val" if path.name.startswith("val") else "train"
        for name, rgb in _tar_pictures(path, problems):
            yield rgb, described(name, split, path.name)
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        name = path.relative_to(folder).as_posix()
        split = "val" if _hash(name) < held_out else "train"
        try:
            yield read_image(path), described(name, split)
        except ImageError as error:
            problems.append(str(error))


def _tar_pictures(path: Path, problems: list[str]) -> Iterator[tuple[str, Image.Image]]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is None or Path(member.name).suffix.lower() not in IMAGE_SUFFIXES:
                    continue
                try:
                    yield member.name, decode_picture(file.read(), f"{path}: {member.name}").image
                except ImageError as error:
                    problems.append(str(error))
    except (tarfile.TarError, OSError) as error:
        problems.append(f"{path}: is damaged or cut short ({error})")


def _read_index(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {(row.get("shard") or "", row["file"]): row for row in csv.DictReader(file)}
    except KeyError as error:
        raise DataError(f"{path} has no column {error}; it needs file, and may have {_COLUMNS}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 CSV ({error})") from error


class PackedFaces:
    """The faces of one split, mapped into memory.

    Args:
        folder: output of `faceprior data pack`.
        split: "train" or "val".
        terms: keep only faces of these terms (for example ("open",)); None or empty keeps all.
        at_least: keep only faces whose labels of these names are at least so large.

    Raises:
        DataError: the manifest is missing or damaged, a file of faces is missing or short, a label is not a number,
            or nothing is left after filtering.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        terms: Sequence[str] | None = None,
        at_least: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = folder
        self.size, faces = _read_manifest(folder)
        kept = [
            place for place, face in enumerate(faces) if face.split == split and (not terms or face.terms in terms)
        ]
        for label, least in (at_least or {}).items():
            kept = [place for place in kept if _number(faces[place], label) >= least]
        self._places, self.faces = kept, [faces[place] for place in kept]
        if not kept:
            asked = f"{f' and terms {terms}' if terms else ''}{f' with at least {at_least}' if at_least else ''}"
            raise DataError(f"{folder} holds no face of split {split!r}{asked}")
        self._mapped()

    def _mapped(self) -> NDArray[np.uint8]:
        """All faces, mapped anew each time, which is cheap: so other processes are sent the file's name alone."""
        try:
            faces: NDArray[np.uint8] = np.load(self.folder / FACES, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder / FACES} cannot be mapped ({error}); pack the data again") from error
        return faces

    def __len__(self) -> int:
        return len(self.faces)

    def pixels(self, indices: Sequence[int]) -> torch.Tensor:
        """Return faces as uint8, shape (B, 3, R, R)."""
        pixels = np.asarray(self._mapped()[[self._places[index] for index in indices]])  # a copy of these alone
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Return faces as float32 in [-1, 1], shape (B, 3, R, R)."""
        return self.pixels(indices).float() / 127.5 - 1.0

    def check_size(self, resolution: int, what: str) -> None:
        """Raise OptionError if weights are for faces of another size."""
        if resolution != self.size:
            raise OptionError(
                f"{what} is for {resolution}×{resolution} faces, the training set holds {self.size}×{self.size};"
                " pack it again with another --size"
            )

    def card(
        self, kind: Literal["prior", "corrector"], name: str, template: Landmarks, schedule: dict[str, Any]
    ) -> ModelCard:
        """Return the card of weights that are trained on these faces: what those are, and may be used for."""
        counts = Counter((face.source, face.terms, face.licence) for face in self.faces)
        data = [
            {"source": source, "terms": terms, "licence": licence, "faces": count}
            for (source, terms, licence), count in sorted(counts.items())
        ]
        terms = {face.terms for face in self.faces}  # the strictest count
        licence = "research only: part of the training faces may be used for non-commercial research only"
        if terms == {"open"}:
            licence = "free: trained on openly licensed faces only"
        elif "unknown" in terms:
            licence = "unknown: the terms of some training faces are not recorded"
        return ModelCard(
            kind, f"{name}-{self.size}", self.size, template=template, schedule=schedule, licence=licence, data=data
        )

    def balanced_weights(self, exponent: float = 0.5) -> torch.Tensor:
        """Sampling probability of each face, float64, shape (N,): a source of n faces gets a share ∝ n^exponent."""
        counts = Counter(face.source for face in self.faces)
        weights = torch.tensor([counts[face.source] ** (exponent - 1.0) for face in self.faces], dtype=torch.float64)
        return weights / weights.sum()


def _number(face: PackedFace, label: str) -> float:
    try:
        return float(face.labels[label])
    except (KeyError, ValueError) as error:
        raise DataError(f"face {face.name} has no number {label!r} among its labels") from error


def _read_manifest(folder: Path) -> tuple[int, list[PackedFace]]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise DataError(f"{path} has format {manifest['format']!r}, not {FORMAT!r}; pack again")
        size = int(manifest["size"])
        faces = [PackedFace(**row) for row in manifest["faces"]]
    except OSError as error:
        raise DataError(f"{folder} has no {MANIFEST}; make it with `faceprior data pack`") from error
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); pack the data again") from error
    return size, faces
