"""What a PNG without an ICC profile says of its colours, as one: cICP, or gAMA and cHRM.

PNG specification, third edition, sections 4.3 and 11.3.2; profiles are of version 2 of ICC.1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D65 = (0.3127, 0.3290)
_SRGB = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)  # x and y of white, red, green and blue
_PRIMARIES = {  # by their number in ITU-T H.273
    1: _SRGB,
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_NODES = 1024  # of a curve
_ABOUT_SRGB = 0.05  # by how much 1 / 2.2 and a file's gamma differ that was written for sRGB


def _srgb(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _bt709(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(v < 0.081, v / 4.5, ((v + 0.099) / 1.099) ** (1 / 0.45))


def _power(gamma: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda v: v**gamma


_CURVES = {1: _bt709, 4: _power(2.2), 5: _power(2.8), 6: _bt709, 8: _power(1.0), 13: _srgb, 14: _bt709, 15: _bt709}
"""To linear light, by their number in ITU-T H.273; PQ (16) and HLG (18) are for high dynamic range."""


def png_profile(content: bytes, info: Mapping[Any, Any], *, grey: bool) -> tuple[bytes | None, str | None]:
    """Make a profile of a PNG's colours, None for sRGB; and say in words what could not be followed."""
    before = takewhile(lambda chunk: chunk[0] != b"IDAT", chunks(content))
    coded = next((data for kind, data in before if kind == b"cICP" and len(data) == 4), None)
    if coded is not None:
        primaries, transfer, matrix, full = coded
        if primaries not in _PRIMARIES or transfer not in _CURVES or matrix or not full:
            return None, "PNG's colour space (cICP) taken for sRGB"
        places, curve = _PRIMARIES[primaries], _CURVES[transfer]
    elif info.get("icc_profile") or "srgb" in info:
        return None, None
    else:
        gamma = info.get("gamma") or 1 / 2.2
        places = info.get("chromaticity") or _SRGB
        curve = _srgb if abs(gamma * 2.2 - 1) < _ABOUT_SRGB else _power(1 / gamma)
    if curve is _srgb and (grey or np.allclose(places, _SRGB, atol=0.002)):
        return None, None
    try:
        return _profile(places, curve, grey=grey), None
    except (ValueError, ArithmeticError, np.linalg.LinAlgError, struct.error):
        return None, "PNG's colours (cHRM) that make no sense left out"


def chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and data of each chunk of a PNG."""
    place = 8
    while len(head := content[place : place + 8]) == 8:
        size, kind = struct.unpack(">I4s", head)
        yield kind, content[place + 8 : place + 8 + size]
        place += size + 12


def _profile(
    places: Sequence[float], curve: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, grey: bool
) -> bytes:
    nodes = np.rint(curve(np.linspace(0, 1, _NODES)) * 65535).astype(">u2").tobytes()
    shape = b"curv\0\0\0\0" + struct.pack(">I", _NODES) + nodes
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 4) + b"PNG\0" + bytes(78), b"cprt": b"text\0\0\0\0CC0\0"}
    tags[b"wtpt"] = _xyz(_D50)
    if grey:
        tags[b"kTRC"] = shape
    else:
        columns = _to_d50(places)
        tags |= {name: _xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape)
    table, body, first = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", first + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4x", first + len(body)) + struct.pack(">I", 0x02400000)
    head += b"mntr" + (b"GRAY" if grey else b"RGB ") + b"XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    head += b"acsp" + bytes(28) + _xyz(_D50)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _to_d50(places: Sequence[float]) -> NDArray[np.float64]:
    """XYZ of red, green and blue, one in each column, as they look under D50."""
    white, *colours = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in np.reshape(places, (4, 2)))
    columns = np.stack(colours, axis=1)
    columns = columns * np.linalg.solve(columns, white)
    adapted = np.linalg.solve(_BRADFORD, (_BRADFORD @ _D50 / (_BRADFORD @ white))[:, None] * _BRADFORD)
    return np.asarray(adapted @ columns)


def _xyz(values: NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)
