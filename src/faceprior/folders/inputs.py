"""Which pictures and clips a restoration is asked for, and what their results are called."""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from faceprior.clips.container import CLIP_SUFFIXES
from faceprior.errors import OptionError
from faceprior.images import IMAGE_SUFFIXES
from faceprior.storage import Place, Url, reason, stamps_of

SUFFIXES = IMAGE_SUFFIXES | CLIP_SUFFIXES
"""File name endings by which pictures and clips are found in a folder."""

_AHEAD = 2048  # folders of a storage that are listed while others are waited for
_ASKED = 64  # times, so that many share one
_IS_PATTERN = re.compile(r"[*?\[]")
_KEPT_BY_SYSTEMS = {"@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "__MACOSX", "Thumbs.db"}  # network drives' too
FACE_SUFFIX = re.compile(r"-face\d+(-\d+|-mean|-doubt|-sheet)?$")
"""What the name of a single face's result ends with, behind that of its photograph."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a restoration."""

    path: Place  # the file, as the user would name it
    folder: str = ""  # where its results go, below the output folder; "" is that folder itself
    problem: str | None = None  # why nothing can be read there
    stamp: dict[str, int] | None = None  # of the file, where listing it has told


class Unlisted(Input):
    """A folder or pattern whose listing failed midway: what else it holds is not known."""


@dataclass(frozen=True, slots=True)
class Files:
    """The inputs that lie in one folder, told by its listing: what ten million of them are handed on as."""

    parent: Place
    names: Sequence[str]  # of the files, all with an ending of `SUFFIXES`
    folder: str = ""  # as in `Input`
    stamps: Mapping[str, NDArray[np.int64]] | None = None  # of the files, where listing them has told

    @property
    def inputs(self) -> Iterator[Input]:
        """The same one by one."""
        stamps = {key: own.tolist() for key, own in (self.stamps or {}).items()}
        for number, name in enumerate(self.names):
            stamp = {key: own[number] for key, own in stamps.items()} or None
            yield Input(self.parent / name, self.folder, stamp=stamp)


Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Folder(Generic[Found]):
    """What a restoration wants to know of one folder."""

    folders: list[str]  # names of those in it, sorted
    pictures: Found | None  # that lie in it, sorted
    left_out: Counter[str]  # of each kind how many


Lister = Callable[[Url, Sequence[str]], Iterator[Folder[Found]]]
"""Begins to list some folders below a URL, and returns what waits for the results."""


def list_folder(folder: Place, below: str) -> Folder[Files]:
    """List the folder that has this place below another; raises OSError where a storage cannot be reached."""
    where = folder / below
    if isinstance(where, Url):
        return sort_out(where, below, where.inside())
    try:
        with os.scandir(where) as entries:
            inside = [(own.name, {"type": _type_of(own)}) for own in entries]
    except OSError:
        return Folder([], None, Counter(["unreadable folder"]))
    return sort_out(where, below, sorted(inside, key=itemgetter(0)))


def _type_of(entry: os.DirEntry[str]) -> str:
    if not entry.is_dir():
        return "file"
    return "link" if entry.is_symlink() else "directory"


def sort_out(where: Place, below: str, inside: Sequence[tuple[str, Mapping[str, Any]]]) -> Folder[Files]:
    """Do what `list_folder` does with what is told of a folder."""
    folders = [(name, own) for name, own in inside if own["type"] in ("directory", "link")]
    files = [(name, own) for name, own in inside if own["type"] not in ("directory", "link")] if folders else inside
    kept = [(name, own) for name, own in files if name[name.rfind(".") :].lower() in SUFFIXES and name[0] != "."]
    seen = [(name, own) for name, own in folders if not _is_hidden(name)]
    inner = [name for name, own in seen if own["type"] == "directory"]
    left_out = Counter({"hidden folder": len(folders) - len(seen), "linked folder": len(seen) - len(inner)})
    if len(kept) < len(files):
        left_out.update(map(_other, sorted({name for name, _ in files}.difference(name for name, _ in kept))))
    stamps = stamps_of([own for _, own in kept]) if isinstance(where, Url) else None
    return Folder(inner, Files(where, [name for name, _ in kept], below, stamps) if kept else None, left_out)


def _when_wanted(folder: Place, belows: Sequence[str]) -> Iterator[Folder[Files]]:
    return map(partial(list_folder, folder), belows)


def find_inputs(
    arguments: Sequence[Place], output: Place | None, on_skipped: Callable[[str], object] = lambda _text: None
) -> list[Input]:
    """Find the pictures and clips that files, folders and patterns stand for.

    A folder is walked, sorted, without what is hidden and without the output folder; the results of what lies in
    its subfolders go into subfolders of the same names. A pattern (`*`, `?`, `[…]`, `**`) that no file is called
    by is expanded; what its fixed beginning leaves of the path is kept in the same way. A URL stands for one file
    if it ends as those of pictures and clips do, else for a folder; its only pattern is `*`. A picture that several
    arguments name is taken once. A folder or pattern without pictures stays an input, with its `problem`.

    Args:
        arguments: files, folders and patterns.
        output: folder of the results; None where each goes beside its input.
        on_skipped: told in a sentence what was left out of a folder or pattern.

    Raises:
        OptionError: the output folder is one of the folders that are walked, or there is none for what a folder or
            a URL holds.
    """
    found = dict[str, Input]()
    for argument in arguments:
        if output is None and (isinstance(argument, Url) or argument.is_dir()):
            kind = "URL" if isinstance(argument, Url) else "folder"
            raise OptionError(f"{argument}: is a {kind}; say where its results go, with --output")
        for own in expand(argument, output or Path(), on_skipped, _when_wanted):
            for candidate in own.inputs if isinstance(own, Files) else [own]:
                if output is None:
                    candidate = replace(candidate, folder=str(candidate.path.parent))  # noqa: PLW2901
                found.setdefault(_absolute(candidate.path), candidate)
    return list(found.values())


def _absolute(path: Place) -> str:
    return str(path) if isinstance(path, Url) else os.path.abspath(path)  # noqa: PTH100 - a link is a picture of its own


def expand(
    argument: Place, output: Place, on_skipped: Callable[[str], object], lister: Lister[Found]
) -> Iterator[Input | Files | Found]:
    """Yield what one argument of `find_inputs` stands for; `lister` is called some folders of a storage ahead."""
    if isinstance(argument, Url):
        yield from _remote(argument, output, on_skipped, lister)
    elif argument.is_dir():
        yield from _walk(argument, output, on_skipped, partial(_when_wanted, argument))
    elif _IS_PATTERN.search(str(argument)) and not os.path.lexists(argument):
        yield from _match(argument, output, on_skipped)
    else:
        yield Input(argument)


def _remote(
    url: Url, output: Place, on_skipped: Callable[[str], object], lister: Lister[Found]
) -> Iterator[Input | Found]:
    try:
        if "*" in url.text:
            yield from _match_remote(url, on_skipped)
        elif PurePath(url.name).suffix.lower() in SUFFIXES:
            yield Input(url)
        else:
            yield from _walk(url, output, on_skipped, partial(lister, url))
    except OSError as error:
        problem = f"{url}: cannot be listed ({reason(error)}); check the address and the access to it"
        yield Unlisted(url, problem=problem)


def _match_remote(pattern: Url, on_skipped: Callable[[str], object]) -> Iterator[Input]:
    fixed = PurePath(pattern.text.partition("*")[0].rpartition("/")[0])
    matches = pattern.matches()
    pictures = [(url, stamp) for url, stamp in matches if PurePath(url.name).suffix.lower() in SUFFIXES]
    others = {url.name for url, _ in matches} - {url.name for url, _ in pictures}
    _tell(pattern, Counter(map(_other, others)), on_skipped)
    for url, stamp in pictures:
        yield Input(url, _relative(PurePath(url.parent.text), fixed), stamp=stamp)
    if not matches:
        yield Input(pattern, problem=f"{pattern}: matches no file; check the pattern")


def _walk(
    folder: Place,
    output: Place,
    on_skipped: Callable[[str], object],
    lister: Callable[[Sequence[str]], Iterator[Folder[Found]]],
) -> Iterator[Input | Found]:
    results = real(output)
    if real(folder) == results:
        raise OptionError(
            f"{folder}: the results would lie among the pictures and be taken for some the next time;"
            " choose another --output"
        )
    left_out, empty = Counter[str](), True
    todo, asked = deque([""]), dict[str, Iterator[Folder[Found]]]()
    while todo:
        if todo[0] not in asked or len(asked) < _AHEAD // 2:
            new = [below for below in islice(todo, _AHEAD) if below not in asked]
            at_once = -(-len(new) // _ASKED)
            for start in range(0, len(new), at_once or 1):
                some = new[start : start + at_once]
                asked.update(dict.fromkeys(some, lister(some)))
        below = todo.popleft()
        found = next(asked.pop(below))
        left_out.update(found.left_out)
        if found.pictures is not None:
            empty = False
            yield found.pictures
        inner = [f"{below}/{name}" if below else name for name in found.folders]
        todo.extendleft(own for own in reversed(inner) if real(folder / own) != results)
    _tell(folder, left_out, on_skipped)
    if empty:
        kinds = ", ".join(sorted(SUFFIXES))
        yield Input(folder, problem=f"{folder}: holds no pictures and no clips ({kinds})")


def _match(pattern: Path, output: Place, on_skipped: Callable[[str], object]) -> Iterator[Input | Files]:
    fixed = Path(*_fixed_parts(pattern))
    everything = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - no root
    matches = [match for match in everything if _KEPT_BY_SYSTEMS.isdisjoint(match.relative_to(fixed).parts)]
    hidden = [match for match in set(everything).difference(matches) if not match.is_dir()]
    left_out = Counter({"hidden file": len(hidden)})
    if "**" not in pattern.parts:  # which lists the folders and all that is in them
        for folder in matches:
            if folder.is_dir():
                for own in _walk(folder, output, on_skipped, partial(_when_wanted, folder)):
                    yield replace(own, folder=_relative(folder / own.folder, fixed))
    files = [match for match in matches if not match.is_dir()]
    if "**" in pattern.parts and pattern.name == "**":
        left_out.update(_other(match.name) for match in files if match.suffix.lower() not in SUFFIXES)
        files = [match for match in files if match.suffix.lower() in SUFFIXES]
    _tell(pattern, left_out, on_skipped)
    for path in files:
        yield Input(path, _relative(path.parent, fixed))
    if not matches:
        yield Input(pattern, problem=f"{pattern}: matches no file; check the pattern")


def _is_hidden(name: str) -> bool:
    return name[0] == "." or name in _KEPT_BY_SYSTEMS


def _other(name: str) -> str:
    # what to call a file that is left out
    if _is_hidden(name):
        return "hidden file"
    return f"{PurePath(name).suffix.lower() or 'other'} file"


def _tell(where: Place, left_out: Counter[str], on_skipped: Callable[[str], object]) -> None:
    said = ", ".join(f"{number} {what}{'s' * (number > 1)}" for what, number in left_out.most_common() if number)
    if said:
        on_skipped(f"{where}: left out {said}")


def _relative(folder: PurePath, to: PurePath) -> str:
    place = folder.relative_to(to).as_posix()
    return "" if place == "." else place


def _fixed_parts(pattern: Path) -> Iterator[str]:
    for part in pattern.parts:
        if _IS_PATTERN.search(part):
            return
        yield part


def output_names(
    inputs: Sequence[Input],
    output: Place,
    suffixes: Sequence[str],
    earlier: Mapping[str, str] | None = None,
    label: str = "",
) -> list[str]:
    """Choose what the results of each input are called, so that none meets another's or an input.

    An input keeps its own stem if it can. Names are compared without their endings, because the ending of a result
    is known only when its input has been read, and without case, as some file systems do.

    Args:
        inputs: in any order; it does not change a name.
        output: folder of the results.
        suffixes: what is appended to a name to make the stems of an input's results, "" first.
        earlier: names that inputs, of this run or not, have from earlier ones, by their paths as text.
        label: what is appended to an input's own stem.

    Returns:
        For each input the path of its results below the output folder, without suffix and ending.
    """
    earlier = earlier or {}
    paths, parents = [str(given.path) for given in inputs], [given.path.parent for given in inputs]
    own, places = {*paths}, {parent: folded(real(parent)) for parent in {*parents}}
    folders = {folder: folded(real(output / folder)) for folder in {given.folder for given in inputs}}
    taken = defaultdict[str, set[str]](set)  # stems, by the folder that they stand in
    for given, parent in zip(inputs, parents, strict=True):  # an input is never written over
        stem = folded(given.path.stem)
        taken[places[parent]].update((stem, FACE_SUFFIX.sub("", stem)))
    for path, name in earlier.items():
        place = folded(real(output / name.rpartition("/")[0]))
        stem = folded(PurePath(name).name)
        taken[place].update(stem + suffix for suffix in (suffixes if path in own else ("",)))
    numbers = defaultdict[tuple[str, str], Iterator[int]](lambda: count(2))
    names = [earlier.get(path, "") for path in paths]
    for position in sorted(range(len(inputs)), key=paths.__getitem__):  # whatever order they came in
        if names[position]:
            continue
        given = inputs[position]
        others = taken[folders[given.folder]]
        for name in _candidates(given, numbers, label):
            stems = {folded(name) + suffix for suffix in suffixes}
            if not stems & others:
                others |= stems
                names[position] = f"{given.folder}/{name}" if given.folder else name
                break
    return names


def _candidates(given: Input, numbers: Mapping[tuple[str, str], Iterator[int]], label: str) -> Iterator[str]:
    path, stem = given.path, given.path.stem
    yield f"{stem}{label}"
    kind = path.suffix.lstrip(".")
    yield f"{stem}_{kind}{label}"
    yield f"{path.parent.name}_{stem}{label}"
    yield from (f"{stem}_{kind}_{number}{label}" for number in numbers[given.folder, path.name])


def real(folder: Place) -> str:
    """Return what a folder is called where no link leads to it."""
    return str(folder) if isinstance(folder, Url) else os.path.realpath(folder)


def folded(name: str) -> str:
    """Return what is alike for two names that one file system may take for one."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
