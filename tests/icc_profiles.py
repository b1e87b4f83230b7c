"""Small ICC profiles (version 2), made from the specification: none may be taken from elsewhere."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)


def _fixed(values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values):
    return b"XYZ \0\0\0\0" + _fixed(values)


def _gamma(value):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256)) + b"\0\0"


def _profile(device, space, connection, tags):
    described = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78), **tags}
    described[b"cprt"] = b"text\0\0\0\0none\0"
    described[b"wtpt"] = _xyz(D50)
    table, body, offset = b"", b"", 128 + 4 + 12 * len(described)
    for name, content in described.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += padded
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, device, space, connection)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(described)) + table + body


def wide_gamut_profile():
    """Primaries of Adobe RGB (1998), as its specification adapts them to D50, with gamma 1.8."""
    columns = {
        b"rXYZ": (0.6097, 0.3111, 0.0195),
        b"gXYZ": (0.2053, 0.6257, 0.0609),
        b"bXYZ": (0.1492, 0.0632, 0.7446),
    }
    tags = {name: _xyz(values) for name, values in columns.items()}
    tags |= {name: _gamma(1.8) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma):
    """Grey with a power law."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _gamma(gamma)})


def neutral_profile(space):
    """A table to Lab, and none back: all colours are grey, the lighter the smaller their values (RGB: the larger)."""
    inputs = len(space.strip())
    corners = np.indices((2,) * inputs).reshape(inputs, -1).mean(axis=0)
    lightness = corners if space == "RGB " else 1 - corners
    lab = np.stack([lightness * 255, np.full_like(lightness, 128), np.full_like(lightness, 128)], axis=-1)
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([inputs, 3, 2, 0]) + _fixed((1, 0, 0, 0, 1, 0, 0, 0, 1))
    table += ramp * inputs + lab.round().astype(np.uint8).tobytes() + ramp * 3
    return _profile(b"scnr" if space == "RGB " else b"prtr", space.encode(), b"Lab ", {b"A2B0": table})
