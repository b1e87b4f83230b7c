"""What is accepted as a picture, and how a file that is not is refused: one line with the file and the remedy."""

from __future__ import annotations

import io
import math
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from faceprior.errors import FacePriorError, ImageError, one_line

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded unless more is allowed, in pixels: 300 MB of RGB."""

MIN_SIDE = 4
"""Smallest side that is accepted, in pixels: below it nothing of a face is left."""

INSTALL_HEIC = 'pip install "faceprior[heic]"'

_BYTES_A_PIXEL = 25  # of memory that a photograph takes until it is written: measured from 4 to 49 megapixels

_DNG_VERSION, _SUBFILE_TYPE, _REDUCED = 50706, 254, 1
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def check_file(path: Path) -> None:
    """Refuse what is no file with something in it.

    Raises:
        ImageError: the file is missing, a folder, a pipe or empty.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}); check the name") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: is a folder; name the pictures inside it, for example {path}/*.png")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: is not a regular file; save the picture to a file first")
    if status.st_size == 0:
        raise ImageError(f"{path}: is empty (0 bytes); copy the picture again")


def check_size(name: str | Path, width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse pictures before they are decoded that are larger than `max_pixels` or smaller than `MIN_SIDE`."""
    if width * height > max_pixels:
        needed, memory = math.ceil(width * height / 1e6), width * height * _BYTES_A_PIXEL / 1e9
        raise ImageError(
            f"{name}: {width}×{height} is more than {max_pixels / 1e6:g} megapixels; crop the face first, or allow it"
            f" with --max-pixels {needed}, which takes about {memory:.1f} GB of memory"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{name}: {width}×{height} is too small; a face needs at least {MIN_SIDE}×{MIN_SIDE} pixels")


def check_layout(name: str | Path, image: Image.Image) -> None:
    """Refuse what Pillow misreads without a word: raw files."""
    tags = getattr(image, "tag_v2", {})
    if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE, 0) & _REDUCED:
        raise ImageError(
            f"{name}: is a camera's raw file, of which only the small preview can be read; export it as TIFF or JPEG"
        )


@contextmanager
def opened(source: Path | bytes, name: str | Path) -> Iterator[Image.Image]:
    """Open a picture; whatever its decoder raises, then or later, becomes an ImageError that begins with `name`."""
    try:
        with (
            _quiet(),  # the pixel limit is ours, and is checked before decoding
            # never by name: Pillow would map some TIFFs into memory, and then misreads those that are rotated
            source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file,
        ):
            head = file.read(64)
            file.seek(0)
            if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head:
                register_heif(
                    ImageError(f"{name}: is HEIC, which needs a plugin; {INSTALL_HEIC}, or convert it to JPEG")
                )
            with Image.open(file) as image:
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a picture that can be read; convert it to PNG or JPEG") from error
    except (FileNotFoundError, PermissionError) as error:
        raise ImageError(f"{name}: cannot be opened ({error.strerror}); check its name and permissions") from error
    except Exception as error:  # decoders raise anything on a damaged file, struct.error for one
        reason = one_line(error)
        raise ImageError(
            f"{name}: is damaged, cut short or of an unknown kind ({reason}); copy it again or convert it to PNG"
        ) from error


class _Quiet:
    """Silences warnings, and lifts Pillow's limit of pixels, while any thread is inside.

    `warnings.catch_warnings` alone mixes threads' filters up.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._caught = threading.Lock(), 0, warnings.catch_warnings()
        self._limit = Image.MAX_IMAGE_PIXELS

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._caught.__exit__(None, None, None)
                    Image.MAX_IMAGE_PIXELS = self._limit


_quiet = _Quiet()


def register_heif(missing: FacePriorError) -> None:
    """Have Pillow read and write HEIC; raises `missing` where its plugin is."""
    try:
        import pillow_heif
    except ImportError as error:
        raise missing from error
    pillow_heif.register_heif_opener()
