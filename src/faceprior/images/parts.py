"""What a file holds beside the picture that is read of it: further pages, layers, channels and hidden pictures."""

from __future__ import annotations

import struct

from PIL import Image, TiffImagePlugin

_PHOTOSHOP = 37724  # Photoshop's tag in a TIFF
_LAYERS = (b"Layr", b"Lr16", b"Lr32")


def frames_left_out(image: Image.Image) -> list[str]:
    """Say how many pages or frames there are, if the first one is not all; a PSD's frames are its layers."""
    count = getattr(image, "n_frames", 1)
    if count < 2 or image.format == "PSD":
        return []
    return [f"first of {count} {'pages' if image.format == 'TIFF' else 'frames'}"]


def parts_left_out(image: Image.Image, content: bytes) -> list[str]:
    """Say in words how many layers, channels and hidden pictures of a file are left out."""
    said = [_counted(_layers(image), "layer"), _counted(_channels(image, content), "channel")]
    hidden = sum(len(ids) for ids in image.info.get("aux", {}).values()) + len(image.info.get("depth_images", ()))
    return [words for words in (*said, _counted(hidden, "hidden picture")) if words]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''} left out" if count else ""


def _layers(image: Image.Image) -> int:
    if image.format == "PSD":
        return len(image.layers)  # type: ignore[attr-defined]
    return _photoshop_layers(bytes(getattr(image, "tag_v2", {}).get(_PHOTOSHOP, b"")))


def _photoshop_layers(blocks: bytes) -> int:
    """Count the layers in "Adobe Photoshop Document Data": blocks of signature, key, size and content."""
    place = blocks.find(b"\0") + 1
    while len(head := blocks[place : place + 14]) == 14:
        order = "<" if head[:4] == b"MIB8" else ">"
        key = head[4:8][::-1] if order == "<" else head[4:8]
        size, count = struct.unpack(f"{order}Ih", head[8:])
        if key in _LAYERS:
            return abs(count)  # negative where the first opacity is that of the whole
        place += 12 + size + -size % 4
    return 0


def _channels(image: Image.Image, content: bytes) -> int:
    if image.format == "PSD":
        (count,) = struct.unpack_from(">H", content, 12)
    else:
        count = getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    return max(0, int(count) - len(image.getbands()))
