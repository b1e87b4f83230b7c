"""A model with YuNet's inputs and outputs that takes red squares for faces: OpenCV's own decoding runs in the tests.

ONNX files are protocol buffers; the few messages that are needed are written here, without the package `onnx`.
"""

import struct

BOX = (0.5, 0.5, 1.3862944, 1.3862944)  # centre; logarithms of the size; in strides of 8, 16 and 32 pixels
POINTS = (-0.5, 0, 1.5, 0, 0.5, 1, -0.25, 2, 1.25, 2)
_FLOAT, _INT64 = 1, 7


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def tensor(name, shape, values, kind=_FLOAT):
    data = struct.pack(f"<{len(values)}{'f' if kind == _FLOAT else 'q'}", *values)
    return message(
        5, b"".join(number(1, side) for side in shape) + number(2, kind) + message(8, name) + message(9, data)
    )


def ints(name, *values):
    return message(5, message(1, name) + b"".join(number(8, value) for value in values) + number(20, 7))


def node(kind, inputs, output, *attributes):
    names = b"".join(message(1, name) for name in inputs) + message(2, output)
    return message(1, names + message(4, kind) + b"".join(attributes))


def value(field, name, *shape):
    sides = b"".join(message(1, number(1, side) if isinstance(side, int) else message(2, side)) for side in shape)
    return message(field, message(1, name) + message(2, message(1, number(1, _FLOAT) + message(2, sides))))


def tiny_yunet():
    """The bytes of the ONNX file."""
    constants = tensor("red", (1, 3, 1, 1), (0, 0, 1 / 255)) + tensor("flat", (3,), (1, 1, -1), _INT64)
    nodes = node("Conv", ("input", "red"), "redness")
    outputs = {}
    constants += tensor("none-obj", (1, 1, 1), (0,)) + tensor("all-obj", (1, 1, 1), (1,))
    constants += tensor("none-bbox", (1, 1, 4), (0,) * 4) + tensor("all-bbox", (1, 1, 4), BOX)
    constants += tensor("none-kps", (1, 1, 10), (0,) * 10) + tensor("all-kps", (1, 1, 10), POINTS)
    for stride in (8, 16, 32):
        nodes += node(
            "AveragePool", ("redness",), f"pooled-{stride}",
            ints("kernel_shape", stride, stride), ints("strides", stride, stride),
        )  # fmt: skip
        nodes += node("Reshape", (f"pooled-{stride}", "flat"), f"row-{stride}")
        nodes += node("Transpose", (f"row-{stride}",), f"cls_{stride}", ints("perm", 0, 2, 1))
        outputs["cls", stride] = 1
        for name, width in (("obj", 1), ("bbox", 4), ("kps", 10)):
            nodes += node("Mul", (f"cls_{stride}", f"none-{name}"), f"nothing-{name}-{stride}")
            nodes += node("Add", (f"nothing-{name}-{stride}", f"all-{name}"), f"{name}_{stride}")
            outputs[name, stride] = width
    graph = nodes + message(2, "tiny") + constants + value(11, "input", 1, 3, "height", "width")
    for (name, stride), width in sorted(outputs.items()):
        graph += value(12, f"{name}_{stride}", 1, f"places-{stride}", width)
    return number(1, 8) + message(7, graph) + message(8, number(2, 13))
