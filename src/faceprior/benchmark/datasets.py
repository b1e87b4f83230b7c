"""Sets of faces: packed, plain folders, and the published test sets as their authors lay them out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from faceprior.errors import DataError, ImageError, OptionError
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
        """Return the face as the prior wants it, (3, n, n) in [-1, 1].

        A face whose landmarks are known, and stand elsewhere than the prior's template has them, is aligned to that,
        and n is `side`; any other keeps its own.

        Raises:
            ImageError: the picture cannot be read or aligned.
        """
        image, landmarks = self.read(), self.landmarks
        if not landmarks or not template or (self.fractional and tuple(landmarks) == template):
            return to_tensor(square(image))
        if self.fractional:
            image = square(image)
            landmarks = [(x * image.width, y * image.height) for x, y in landmarks]
        return to_tensor(align(image, landmarks, template, side))


@dataclass(frozen=True)
class FaceSet:
    """Faces to restore, in a fixed order, and the name of their dataset or folder."""

    name: str
    faces: Sequence[SetFace]


def open_faces(folders: Sequence[str | Path], dataset: str = "", split: str = "val") -> FaceSet:
    """Find the faces of folders: packed sets, of which a split is taken, plain ones, or copies of a dataset.

    A packed set is known by its manifest, whatever the dataset is.

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
        found = _packed(folder, split) if packed else _published(folder, dataset) if dataset else _plain(folder)
        faces += [replace(face, name=f"{folder.name}/{face.name}") for face in found] if len(folders) > 1 else found
    names = Counter(face.name for face in faces)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DataError(
            f"{len(twice)} faces have the name of another one, {twice[0]} for one; rename or leave out some"
        )
    return FaceSet(dataset if published else ", ".join(Path(folder).name for folder in folders), faces)


def choose_faces(faces: Sequence[SetFace], count: int = 0, subset: str = "") -> list[SetFace]:
    """Choose so many faces, spread evenly over a subset; 0 takes all.

    Raises:
        OptionError: the subset is neither "extreme-pose" nor LABEL=VALUE, or empty.
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


def group_faces(labels: Sequence[Mapping[str, str]], by: str) -> dict[str, list[int]]:
    """Return the positions of the faces of each value of a label; raises OptionError if no face has it."""
    groups: dict[str, list[int]] = {}
    for index, own in enumerate(labels):
        if by in own:
            groups.setdefault(own[by], []).append(index)
    if not groups:
        known = ", ".join(sorted({name for own in labels for name in own}))
        raise OptionError(
            f"no face has the label {by!r}; there are {known}. Labels are the columns of index.csv when the data"
            " is packed: `faceprior data pack` again after adding one"
        )
    return dict(sorted(groups.items()))


def _packed(folder: Path, split: str) -> list[SetFace]:
    packed, faces = PackedFaces(folder, split), []
    for index, own in enumerate(packed.faces):
        labels = {"source": own.source, "terms": own.terms, **own.labels}
        faces.append(SetFace(own.name, partial(_packed_picture, packed, index), labels=labels))
    return faces


def _packed_picture(packed: PackedFaces, index: int) -> Image.Image:
    return to_pil(packed.batch([index])[0])


def _plain(folder: Path) -> list[SetFace]:
    if faces := _faces_in(folder, folder):
        return faces
    raise DataError(f"{folder} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) and no {MANIFEST}")


def _faces_in(
    folder: Path,
    part: Path,
    pattern: str = "**/*",
    landmarks: Points = (),
    read: Callable[[Path], Image.Image] = read_image,
) -> list[SetFace]:
    return [
        SetFace(path.relative_to(folder).as_posix(), partial(read, path), landmarks, fractional=True)
        for path in sorted(part.glob(pattern))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]


def _cut_out(path: Path) -> Image.Image:
    """The largest face of a photograph, aligned to `CHIP_TEMPLATE`."""
    photo = read_image(path)
    if not (found := load_detector()(photo)):
        raise ImageError(f"{path}: no face is found in it")
    return align(photo, found[0].landmarks, CHIP_TEMPLATE, 512)


class _Layout(NamedTuple):
    """One way in which copies of a dataset are laid out: the first of the folders that there is holds the faces."""

    folders: tuple[str, ...]
    pattern: str = "**/*"
    landmarks: Landmarks = FFHQ_TEMPLATE
    read: Callable[[Path], Image.Image] = read_image


_LAYOUTS = {
    # CelebA-HQ (Karras et al. 2018); CelebA itself is `_celeba`
    "celeba": [_Layout(("CelebA-HQ-img", "CelebAMask-HQ/CelebA-HQ-img", "celeba_hq_256"))],
    # Karras et al. 2019, in folders of a thousand
    "ffhq": [
        _Layout(
            ("images1024x1024", "images512x512", "images256x256", "thumbnails128x128", "."), f"**/{'[0-9]' * 5}.png"
        )
    ],
    # the aligned crops of blind face restoration (Wang et al. 2021), or the photographs (Huang et al. 2007)
    "lfw": [
        _Layout(("lfw_cropped_faces", "LFW-Test", "lfw_test")),
        _Layout(("lfw", "lfw-deepfunneled", "lfw_funneled", "."), f"*/*_{'[0-9]' * 4}.jpg", CHIP_TEMPLATE, _cut_out),
    ],
    # 407 aligned crops (Wang et al. 2021), and 970 of WIDER FACE (Zhou et al. 2022)
    "webphoto": [_Layout(("WebPhoto-Test", "WebPhoto_cropped_faces", "cropped_faces"))],
    "wider": [_Layout(("WIDER-Test", "Wider-Test", "wider_test"))],
}


def _published(folder: Path, dataset: str) -> list[SetFace]:
    needs = ["img_align_celeba/ with list_landmarks_align_celeba.txt"] if dataset == "celeba" else []
    if needs and (faces := _celeba(folder)):
        return faces
    for layout in _LAYOUTS[dataset]:
        part = _first_folder(folder, *layout.folders)
        if part is not None and (faces := _faces_in(folder, part, *layout[1:])):
            return faces
        needs.append(f"{layout.folders[0]}/{layout.pattern}")
    raise DataError(f"{folder} is not laid out as {dataset}: it needs {', or '.join(needs)}")


def _celeba(folder: Path) -> list[SetFace]:
    """The test pictures of CelebA, aligned by its authors, with their landmarks (Liu et al. 2015)."""
    name = "img_align_celeba"  # some copies have it twice
    pictures = _first_folder(folder, f"{name}/{name}", f"Img/{name}/{name}", name, f"Img/{name}")
    landmarks = {
        name: tuple(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True))
        for name, *numbers in _rows(folder, "list_landmarks_align_celeba.txt")
        if len(numbers) == 10
    }
    parts = dict(row[:2] for row in _rows(folder, "list_eval_partition.txt"))
    # a count, a line of names, then a file and −1 or 1 for each name
    names, *values = [*_rows(folder, "list_attr_celeba.txt")][1:] or [[]]
    attributes = {file: dict(zip(names, own, strict=False)) for file, *own in values}
    return [
        SetFace(name, partial(read_image, pictures / name), points, labels=attributes.get(name, {}))
        for name, points in sorted(landmarks.items())
        if pictures is not None and parts.get(name, _TEST_PART) == _TEST_PART and (pictures / name).is_file()
    ]


def _first_folder(folder: Path, *names: str) -> Path | None:
    """The first of the folders inside a folder, or itself if it has one of the names."""
    inside = (folder / name for name in names)
    return next(filter(Path.is_dir, inside), folder if folder.name in names else None)


def _rows(folder: Path, name: str) -> Iterator[list[str]]:
    """The words of each line of a table of CelebA, which lies in the folder or in one inside it; none without it."""
    table = next(filter(Path.is_file, (folder / name, *sorted(folder.glob(f"*/{name}")))), None)
    if table is not None:
        try:
            yield from (words for line in table.read_text(encoding="utf-8").splitlines() if (words := line.split()))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{table} cannot be read ({error}); copy it again") from error
