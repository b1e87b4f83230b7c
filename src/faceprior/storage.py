"""Files by address: a path on this machine, or the URL of whatever fsspec can reach (s3://, gs://, https://, …).

Credentials come the ordinary way of each store: the environment, its own files, or fsspec's configuration.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from faceprior.errors import FacePriorError, ImageError, OptionError, OutputError, UnreachableError
from faceprior.images import read_file, write_file

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# a put is seen when all of it is there
_WHOLE_OR_NOTHING = frozenset(["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"])
_CHANGED = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")  # as stores call it


@dataclass(frozen=True)
class Url:
    """The address of a file or folder that fsspec reaches. Its parts are called as a `Path`'s.

    Attributes:
        text: the URL, without a slash at its end.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, below: str | PurePath) -> Url:
        return Url(f"{self.text}/{below}") if str(below) else self

    @property
    def name(self) -> str:
        """What the file is called."""
        last = self.text.rpartition("/")[2]
        return unquote(last.partition("?")[0]) if self.text.startswith("http") else last

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        name = self.name
        stem, _, ending = name.rpartition(".")
        return stem if stem and ending else name

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        stem, dot, ending = self.name.rpartition(".")
        return dot + ending if stem and ending else ""

    @property
    def parent(self) -> Url:
        """The folder that it lies in."""
        return Url(self.text.rpartition("/")[0])

    def read(self) -> bytes:
        """Return what is in the file; raises OSError."""
        with _reached(self) as (store, path):
            return bytes(store.cat_file(path))

    def write(self, content: bytes) -> None:
        """Write the file so that nobody ever sees a part of it; raises OSError."""
        with _reached(self) as (store, path):
            if _is_whole_or_nothing(store):
                store.pipe_file(path, content)
                return
            parent, _, _ = path.rpartition("/")
            store.makedirs(parent, exist_ok=True)
            partial = f"{parent}/.faceprior-{secrets.token_hex(8)}.partial"
            try:
                store.pipe_file(partial, content)
                store.mv(partial, path)
            except BaseException:
                with suppress(Exception):
                    store.rm_file(partial)
                raise

    def create(self, content: bytes) -> bool:
        """Write the file if there is none, so that of several who try one succeeds; raises OSError.

        Returns:
            Whether it was this call that wrote it.
        """
        with _reached(self) as (store, path):
            if not _is_whole_or_nothing(store):
                store.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                store.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            return True

    def remove(self) -> None:
        """Remove the file, if there is one; raises OSError."""
        with _reached(self) as (store, path), suppress(FileNotFoundError):
            store.rm_file(path)

    def names(self) -> list[str]:
        """What the files and folders in this folder are called, sorted; none if there is no such folder."""
        with _reached(self) as (store, path):
            try:
                listed = store.ls(path, detail=False)
            except FileNotFoundError:
                return []
        return sorted(own.rstrip("/").rpartition("/")[2] for own in listed)

    def stamp(self) -> dict[str, int]:
        """What tells whether the file has changed, see `stamp`; raises OSError."""
        with _reached(self) as (store, path):
            return _first(stamps_of([store.info(path)]))

    def inside(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return what is in the folder, sorted: names, and what the store says of each; raises OSError."""
        with _reached(self) as (store, path):
            # what is called as the folder stands for the folder itself
            told = [(key, own) for own in store.ls(path, detail=True) if (key := own["name"].rstrip("/")) != path]
        return sorted(((key.rpartition("/")[2], own) for key, own in told), key=itemgetter(0))

    def files(self) -> Iterator[tuple[str, int]]:
        """Yield all files in the folder and in those below: their places below it, and bytes; raises OSError."""
        todo = [""]
        while todo:
            below = todo.pop()
            inside = [(f"{below}/{name}" if below else name, own) for name, own in (self / below).inside()]
            yield from ((name, int(own.get("size") or 0)) for name, own in inside if own["type"] != "directory")
            todo.extend(name for name, own in reversed(inside) if own["type"] == "directory")

    def matches(self) -> list[tuple[Url, dict[str, int]]]:
        """The files that this address with `*` in it stands for, sorted, and their stamps; raises OSError."""
        with _reached(self) as (store, path):
            found = store.glob(path, detail=True)
        start = self.text[: len(self.text) - len(path)]
        files = [name for name in sorted(found) if found[name]["type"] == "file"]
        return [(Url(start + name), _first(stamps_of([found[name]]))) for name in files]


Place = Path | Url
"""Of a file or folder."""


def place(text: str | Path | Url) -> Place:
    """Return the place that a user names."""
    if isinstance(text, Url) or not _URL.match(str(text)):
        return text if isinstance(text, Url) else Path(text)
    if str(text).startswith("file://"):
        return Path(url2pathname(urlsplit(str(text)).path))
    return Url(str(text).rstrip("/"))


def absolute(where: Place) -> Place:
    """Return the place as it is called from everywhere."""
    return where if isinstance(where, Url) else where.absolute()


def as_url(where: Place) -> Url:
    """Return the URL of any place."""
    return where if isinstance(where, Url) else Url(f"file://{where.resolve().as_posix()}")


def read(where: Place) -> bytes:
    """Return what is in a picture's file.

    Raises:
        ImageError: it cannot be read.
        UnreachableError: that may pass.
    """
    if not isinstance(where, Url):
        return read_file(where)
    try:
        return where.read()
    except OSError as error:
        raise unreadable(where, error) from error


def write(where: Place, content: bytes) -> None:
    """Write a file so that nobody ever sees a part of it; its folder exists, or the store makes it.

    Raises:
        OutputError: it cannot be written.
    """
    if not isinstance(where, Url):
        write_file(where, content)
        return
    try:
        where.write(content)
    except OSError as error:
        raise OutputError(f"{where}: cannot be written ({reason(error)}); choose another --output") from error


def stamp(where: Place) -> dict[str, int]:
    """Return what tells whether a file has changed: "bytes" and "modified_ns", 0 where a store does not say.

    Raises:
        OSError: there is no such file, or it cannot be reached.
    """
    if isinstance(where, Url):
        return where.stamp()
    status = where.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


@contextmanager
def as_file(where: Place, *, written: bool = False) -> Iterator[Path]:
    """Have a path for a file, wherever it is: elsewhere, a copy is fetched first, or written in the end.

    Raises:
        ImageError: it cannot be fetched.
        OutputError: it cannot be written.
    """
    if not isinstance(where, Url):
        yield where
        return
    with tempfile.TemporaryDirectory(prefix="faceprior-") as folder:
        copy = Path(folder, where.name)
        if not written:
            copy.write_bytes(read(where))
        yield copy
        if written:
            write(where, copy.read_bytes())


def unreadable(where: Place, error: OSError) -> ImageError:
    """Return the error of a file that cannot be read."""
    hopeless = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    kind = ImageError if isinstance(error, hopeless) else UnreachableError
    return kind(f"{where}: cannot be opened ({reason(error)}); check the name and the access to it")


def reason(error: OSError) -> str:
    """What an error says, without the file."""
    return error.strerror or str(error) or type(error).__name__


@contextmanager
def _reached(url: Url) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; what goes wrong there, in whatever library, is an OSError."""
    import fsspec

    try:
        store, path = fsspec.url_to_fs(url.text, use_listings_cache=False)
        yield store, path.rstrip("/")
    except ImportError as error:
        raise FacePriorError(f"{url}: this storage needs a package that is not installed ({error})") from error
    except (FacePriorError, OSError):
        raise
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise OSError(str(error)) from error
        raise OptionError(f"{url}: {error}; check how it begins") from error
    except Exception as error:  # stores raise what they like: no credentials, a server's own codes
        raise OSError(f"{type(error).__name__}: {error}") from error


def _is_whole_or_nothing(store: Any) -> bool:
    protocols = (store.protocol,) if isinstance(store.protocol, str) else store.protocol
    return not _WHOLE_OR_NOTHING.isdisjoint(protocols)


def stamps_of(infos: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.int64]]:
    """Return what `stamp` says of each of some files, from what their store says of them."""
    try:
        seconds = [info["LastModified"].timestamp() for info in infos]  # of S3, where there may be millions
    except (KeyError, AttributeError):
        seconds = [_modified(info) for info in infos]
    changed = np.rint(np.multiply(seconds, 1e6)).astype(np.int64) * 1000  # a float holds microseconds exactly
    return {"bytes": np.array([info.get("size") or 0 for info in infos], np.int64), "modified_ns": changed}


def _first(stamps: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
    return {key: int(own[0]) for key, own in stamps.items()}


def _modified(info: Mapping[str, Any]) -> float:
    changed = next((info[key] for key in _CHANGED if info.get(key)), 0.0)
    if isinstance(changed, str):
        try:
            changed = datetime.fromisoformat(changed.replace("Z", "+00:00"))
        except ValueError:
            return 0.0
    return changed.timestamp() if isinstance(changed, datetime) else float(changed)
