"""What a file says about itself, and about how faceprior made it.

How a result was made is JSON: in a PNG an iTXt chunk under the key "faceprior", in other formats a property of the
XMP packet, beside the photographer's own. EXIF stays the photographer's.
"""

from __future__ import annotations

import html
import json
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from faceprior.errors import FacePriorError, ImageError
from faceprior.images.limits import check_file, opened

METADATA_KEY = "faceprior"

_NEW_PACKET = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
_DESCRIPTION = (
    '<rdf:Description rdf:about="" xmlns:faceprior="urn:faceprior:">'
    "<faceprior:made>{}</faceprior:made></rdf:Description>"
)
_IN_XMP = re.compile(rb"<faceprior:made>([^<]*)</faceprior:made>")
_EARLIER = re.compile(re.escape(_DESCRIPTION).encode().replace(rb"\{\}", b"[^<]*"))
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:>|=["']))[2-8]""")
# exif:GPSLatitude, photoshop:City, Iptc4xmpCore:Location, Iptc4xmpExt:LocationCreated …, as attribute or as element
_PLACE = (
    rb"(?:exif:GPS\w+|photoshop:(?:City|State|Country)|Iptc4xmpCore:(?:Location|CountryCode)|Iptc4xmpExt:Location\w+)"
)
_XMP_PLACE = re.compile(
    rb"\s" + _PLACE + rb"=(?:\"[^\"]*\"|'[^']*')|<(" + _PLACE + rb")(?:\s[^>]*)?(?:/>|>.*?</\1\s*>)", re.DOTALL
)
_MOTION = re.compile(rb"""(:(?:MotionPhoto|MicroVideo)(?:>|=["']))1""")
_GAIN_MAP = re.compile(rb"""\s+hdrgm:\w+=(?:"[^"]*"|'[^']*')|<hdrgm:(\w+)>.*?</hdrgm:\1>""", re.DOTALL)
_CONTAINER = re.compile(rb"<Container:Directory>.*?</Container:Directory>", re.DOTALL)
_END_OF_RDF = b"</rdf:RDF>"

# how a TIFF's samples lie in it, its previews and what is kept apart: nothing of that describes the new file
_LAYOUT_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289}
    | {290, 291, 292, 293, 297, 301, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 333, 334, 336}
    | {337, 338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700}
    | {33723, 34377, 34675, 37724, 50740}
)
_UNREADABLE_EXIF = (ValueError, LookupError, TypeError, OSError, SyntaxError, ArithmeticError, struct.error)


def exif_of(image: Image.Image) -> tuple[bytes | None, tuple[str, ...]]:
    """Return an image's EXIF block, orientation reset and without thumbnail, and what of it was lost, in words."""
    try:
        content = image.getexif().tobytes()
        exif = Image.Exif()
        exif.load(content)
        for tag in _LAYOUT_TAGS.intersection(exif):
            del exif[tag]
        # XMP's orientation counts as EXIF's for Pillow
        exif.pop(ExifTags.Base.Orientation, None)
        if not exif:
            return None, ()
        exif[ExifTags.Base.Orientation] = 1
        return exif.tobytes(), ()
    except _UNREADABLE_EXIF:
        return None, ("EXIF that cannot be understood left out",)


def resized_exif(content: bytes, width: int, height: int) -> Image.Exif:
    """Return an EXIF block that gives the size of the picture that it goes into, where it gives one."""
    exif = Image.Exif()
    exif.load(content)
    photo = exif.get_ifd(ExifTags.IFD.Exif)
    for tag, side in ((ExifTags.Base.ExifImageWidth, width), (ExifTags.Base.ExifImageHeight, height)):
        if tag in photo:
            photo[tag] = side
    return exif


def xmp_of(image: Image.Image) -> bytes | None:
    """Return an image's XMP packet, orientation reset."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "replace")
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet) if isinstance(packet, bytes) else None


def has_location(exif: bytes | None, packet: bytes | None) -> bool:
    """Whether EXIF or XMP say where a picture was taken."""
    return without_location(exif, packet) != (exif, packet)


def without_location(exif: bytes | None, packet: bytes | None) -> tuple[bytes | None, bytes | None]:
    """Return EXIF and XMP without the place where the picture was taken: coordinates, and names of places."""
    if exif:
        block = Image.Exif()
        block.load(exif)
        if ExifTags.IFD.GPSInfo in block:
            block.get_ifd(ExifTags.IFD.Exif)  # which it writes only once it was read
            del block[ExifTags.IFD.GPSInfo]
            exif = block.tobytes()
    return exif, _XMP_PLACE.sub(b"", packet) if packet else packet


def without_promises(packet: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
    """Return an XMP packet that promises nothing that lay behind the picture in its file, and what that was."""
    if packet is None:
        return None, ()
    kept, motion = _MOTION.subn(rb"\g<1>0", packet)
    kept, gain_map = _GAIN_MAP.subn(b"", kept)
    if motion or gain_map:
        kept = _CONTAINER.sub(b"", kept)
    said = (("video of a motion photo left out", motion), ("HDR gain map left out", gain_map))
    return kept, tuple(text for text, count in said if count)


def as_json(metadata: dict[str, Any]) -> str:
    """Return metadata as one line of JSON, the same for the same content."""
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    # file names need not be UTF-8; what is not becomes JSON's own \udcXX
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def xmp_with(packet: bytes | None, metadata: dict[str, Any]) -> bytes:
    """Return an XMP packet that also says how the picture was made; an earlier word on that is replaced."""
    if packet is None or _END_OF_RDF not in packet:
        packet = _NEW_PACKET
    before, _, after = _EARLIER.sub(b"", packet).rpartition(_END_OF_RDF)
    description = _DESCRIPTION.format(html.escape(json.dumps(metadata, sort_keys=True), quote=False))
    return before + description.encode() + _END_OF_RDF + after


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read back how a picture was made, from its file.

    Raises:
        ImageError: the file is not one that faceprior wrote.
    """
    path = Path(path)
    check_file(path)
    with opened(path, path) as image:
        text = image.info.get(METADATA_KEY) or _from_xmp(xmp_of(image))
    return parsed_metadata(text, path, ImageError)


def parsed_metadata(text: object, path: Path, error: type[FacePriorError]) -> dict[str, Any]:
    """Return how a file was made from what it says of it; raises `error`."""
    if not isinstance(text, str):
        raise error(f"{path}: carries no faceprior metadata; only results written by faceprior do")
    with suppress(ValueError):
        if isinstance(metadata := json.loads(text), dict):
            return metadata
    raise error(f"{path}: its faceprior metadata is damaged; restore it again")


def _from_xmp(packet: bytes | None) -> str | None:
    found = _IN_XMP.search(packet) if packet else None
    return html.unescape(found[1].decode("utf-8", "replace")) if found else None
