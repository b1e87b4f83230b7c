"""Sets of faces: packed, plain folders, and the published test sets as their authors lay them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from faceprior.errors import DataError, ImageError, OptionError
from faceprior.evaluation.groups import face_labels, group_faces
from faceprior.evaluation.identity import CHIP_TEMPLATE
from faceprior.faces import Points, align, load_detector
from faceprior.images import IMAGE_SUFFIXES, read_image, square, to_pil, to_tensor
from faceprior.priors.card import FFHQ_TEMPLATE, Landmarks
from faceprior.training.shards import MANIFEST, PackedFaces

EXTREME_POSE = 0.2
"""`nose_offset` from which a pose counts as extreme."""

EXTREME_POSE_SUBSET = "extreme-pose"

_TEST_PART = "2"  # of CelebA's list_eval_partition.txt


@dataclass(frozen=True)
class SetFace:
    """One face of a set.

    Attributes:
        name: file name inside its folder.
        read: reads the picture, upright RGB.
        landmarks: five landmarks in pixels of the picture, or as fractions of its side; empty if unknown.
        fractional: whether the landmarks are fractions.
        labels: what it can be chosen by.
    """

    name: str
    read: Callable[[], Image.Image]
    landmarks: Points = ()
    fractional: bool = False
    labels: dict[str, str] = field(default_factory=dict)

    def picture(self, template: Landmarks, side: int) -> torch.Tensor:
        """Return the face as the prior wants it.

        Args:
            template: of the prior; a face whose landmarks are known and stand elsewhere is aligned to it.
            side: of an aligned face.

        Returns:
            (3, n, n) in [-1, 1]; n is `side` if it was aligned, else the picture's own.

        Raises:
            ImageError: the picture cannot be read or aligned.
        """
        image = self.read()
        landmarks = self.landmarks
        if not landmarks or not template or (self.fractional and tuple(landmarks) == template):
            return to_tensor(square(image))
        if self.fractional:
            image = square(image)
            landmarks = [(x * image.width, y * image.height) for x, y in landmarks]
        return to_tensor(align(image, landmarks, template, side))


@dataclass(frozen=True)
class FaceSet:
    """Faces to restore.

    Attributes:
        name: of the dataset, or of the folder.
        faces: in a fixed order.
    """

    name: str
    faces: Sequence[SetFace]


def open_faces(folders: Sequence[str | Path], dataset: str = "", split: str = "val") -> FaceSet:
    """Find the faces of folders.

    Args:
        folders: packed sets, plain folders of pictures, or copies of the dataset.
        dataset: "celeba", "ffhq", "lfw", "webphoto", "wider", or "" for plain folders; a packed set is known by its
            manifest.
        split: of packed sets, "val" or "train".

    Raises:
        DataError: a folder is missing, holds no face or is not laid out as the dataset is.
    """
    if not folders:
        raise DataError("no faces were named; give a folder with --data")
    faces: list[SetFace] = []
    published = False
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder; give --data the folder of faces")
        packed = (folder / MANIFEST).is_file()
        published |= bool(dataset) and not packed
        found = _packed(folder, split) if packed else LAYOUTS[dataset](folder)
        faces += [replace(face, name=f"{folder.name}/{face.name}") for face in found] if len(folders) > 1 else found
    names = Counter(face.name for face in faces)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(
            f"{len(twice)} faces have the name of another one, {twice[0]} for one; rename or leave out some"
        )
    return FaceSet(dataset if published else ", ".join(Path(folder).name for folder in folders), faces)


def choose_faces(faces: Sequence[SetFace], count: int = 0, subset: str = "") -> list[SetFace]:
    """Choose a part of a set.

    Args:
        faces: all faces.
        count: how many, spread evenly over the subset; 0 takes all.
        subset: "extreme-pose", NAME=VALUE of a label, or "" for all.

    Raises:
        OptionError: the subset is unknown or empty.
    """
    chosen = list(faces)
    if subset == EXTREME_POSE_SUBSET:
        detector = load_detector()
        found = ((face, detector(face.read())) for face in chosen)
        chosen = [face for face, own in found if own and nose_offset(own[0].landmarks) >= EXTREME_POSE]
        if not chosen:
            raise OptionError(f"none of the {len(faces)} faces has an extreme pose")
    elif subset:
        label, equals, value = subset.partition("=")
        if not equals:
            raise OptionError(f"subset {subset!r} is not known; write {EXTREME_POSE_SUBSET} or LABEL=VALUE")
        groups = group_faces([face.labels for face in chosen], label)
        if value not in groups:
            raise OptionError(f"no face has {subset}; values of {label} are {', '.join(list(groups)[:20])}")
        chosen = [chosen[index] for index in groups[value]]
    count = min(count or len(chosen), len(chosen))
    return [chosen[index * len(chosen) // count] for index in range(count)]


def nose_offset(landmarks: Points) -> float:
    """How far the nose stands off the middle of the eyes, in distances between the eyes; it grows with the yaw."""
    left, right, nose = np.asarray(landmarks[:3])
    across = right - left
    return abs(float((nose - (left + right) / 2) @ across / (across @ across)))


def _packed(folder: Path, split: str) -> list[SetFace]:
    packed = PackedFaces(folder, split)
    return [
        SetFace(
            own.name, partial(_packed_picture, packed, index), labels=face_labels(own.source, own.terms, own.labels)
        )
        for index, own in enumerate(packed.faces)
    ]


def _packed_picture(packed: PackedFaces, index: int) -> Image.Image:
    return to_pil(packed.batch([index])[0])


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _faces_of(
    folder: Path, paths: Sequence[Path], landmarks: Points = (), read: Callable[[Path], Image.Image] = read_image
) -> list[SetFace]:
    return [
        SetFace(path.relative_to(folder).as_posix(), partial(read, path), landmarks, fractional=True)
        for path in paths
    ]


def _plain(folder: Path) -> list[SetFace]:
    paths = _pictures(folder)
    if not paths:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) and no {MANIFEST}")
    return _faces_of(folder, paths)


def _celeba(folder: Path) -> list[SetFace]:
    """CelebA's aligned pictures with their landmarks (Liu et al. 2015), or CelebA-HQ's (Karras et al. 2018)."""
    high_quality = _first_folder(folder, "CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img", "celeba_hq_256")
    if high_quality is not None:
        paths = sorted(_pictures(high_quality), key=lambda path: (len(path.stem), path.stem))
        return _faces_of(folder, paths, FFHQ_TEMPLATE)
    name = "img_align_celeba"  # some copies have it twice
    pictures = _first_folder(folder, f"{name}/{name}", f"Img/{name}/{name}", name, f"Img/{name}")
    table = _first_file(folder, "list_landmarks_align_celeba.txt")
    if pictures is None or table is None:
        raise DataError(
            f"{folder} is not laid out as CelebA: it needs img_align_celeba/ with list_landmarks_align_celeba.txt"
            " (in the folder or in Anno/), or CelebA-HQ-img/"
        )
    landmarks = {
        name: tuple(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True))
        for name, *numbers in _rows(table)
        if len(numbers) == 10
    }
    parts = dict(row[:2] for row in _rows(_first_file(folder, "list_eval_partition.txt")))
    attributes = _attributes(_first_file(folder, "list_attr_celeba.txt"))
    faces = [
        SetFace(name, partial(read_image, pictures / name), points, labels=attributes.get(name, {}))
        for name, points in sorted(landmarks.items())
        if parts.get(name, _TEST_PART) == _TEST_PART and (pictures / name).is_file()
    ]
    if not faces:
        raise DataError(f"{pictures} holds none of the test pictures that {table.name} names")
    return faces


def _ffhq(folder: Path) -> list[SetFace]:
    """FFHQ (Karras et al. 2019): images1024x1024/ or thumbnails128x128/, in folders of a thousand."""
    pictures = _first_folder(folder, "images1024x1024", "images512x512", "images256x256", "thumbnails128x128")
    paths = _pictures(pictures) if pictures else sorted(folder.glob("[0-9][0-9][0-9][0-9][0-9]/*.png"))
    if not paths:
        raise DataError(f"{folder} is not laid out as FFHQ: it needs images1024x1024/ or thumbnails128x128/")
    return _faces_of(folder, paths, FFHQ_TEMPLATE)


def _lfw(folder: Path) -> list[SetFace]:
    """LFW-Test, the aligned crops of blind face restoration (Wang et al. 2021), or LFW itself (Huang et al. 2007)."""
    if crops := _found_crops(folder, "lfw_cropped_faces", "LFW-Test", "lfw_test"):
        return crops
    root = _first_folder(folder, "lfw", "lfw-deepfunneled", "lfw_funneled") or folder
    paths = sorted(path for path in root.glob("*/*_[0-9][0-9][0-9][0-9].jpg") if path.stem[:-5] == path.parent.name)
    if not paths:
        raise DataError(f"{folder} is not laid out as LFW: it needs lfw_cropped_faces/, or lfw/NAME/NAME_0001.jpg")
    return _faces_of(folder, paths, CHIP_TEMPLATE, _cut_out)


def _cut_out(path: Path) -> Image.Image:
    """The largest face of a photograph, aligned to `CHIP_TEMPLATE`."""
    photo = read_image(path)
    if not (found := load_detector()(photo)):
        raise ImageError(f"{path}: no face is found in it")
    return align(photo, found[0].landmarks, CHIP_TEMPLATE, 512)


def _crops(folder: Path, *names: str) -> list[SetFace]:
    if crops := _found_crops(folder, *names):
        return crops
    raise DataError(f"{folder} is not laid out as {names[0]}: it needs {names[0]}/ with aligned pictures")


def _found_crops(folder: Path, *names: str) -> list[SetFace]:
    """Aligned crops in one of the folders, or in the folder itself if it has one of the names."""
    found = _first_folder(folder, *names) or (folder if folder.name in names else None)
    return _faces_of(folder, _pictures(found), FFHQ_TEMPLATE) if found else []


LAYOUTS: dict[str, Callable[[Path], list[SetFace]]] = {
    "": _plain,
    "celeba": _celeba,
    "ffhq": _ffhq,
    "lfw": _lfw,
    # 407 aligned crops (Wang et al. 2021), and 970 of WIDER FACE (Zhou et al. 2022)
    "webphoto": lambda folder: _crops(folder, "WebPhoto-Test", "WebPhoto_cropped_faces", "cropped_faces"),
    "wider": lambda folder: _crops(folder, "WIDER-Test", "Wider-Test", "wider_test"),
}
"""What finds the faces of a published dataset, or of a plain folder."""


def _first_folder(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _first_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()), None)


def _rows(table: Path | None) -> Iterator[list[str]]:
    if table is not None:
        try:
            yield from (words for line in table.read_text(encoding="utf-8").splitlines() if (words := line.split()))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{table} cannot be read ({error}); copy it again") from error


def _attributes(table: Path | None) -> dict[str, dict[str, str]]:
    """CelebA's attributes: a count, a line of names, then a file and −1 or 1 for each name."""
    rows = list(_rows(table))
    if len(rows) < 2:
        return {}
    names = rows[1]
    return {file: dict(zip(names, values, strict=False)) for file, *values in rows[2:]}
