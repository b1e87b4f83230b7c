import errno
import io
import json
import os
import stat
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from faceprior import images
from faceprior.errors import ImageError, OutputError
from faceprior.images import (
    decode_picture,
    read_image,
    read_metadata,
    read_picture,
    resize,
    square,
    to_pil,
    to_tensor,
    write_png,
)


def gradient(width=12, height=12):
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / (width - 1), y * 255 / (height - 1), 255 - x * 255 / (width - 1)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def grey_levels(depth):
    return np.round(np.mgrid[0:12, 0:12][1] * (depth / 11))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(width, height, bit_depth=8, colour_type=2, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def rgb_png_of_16_bits(pixels):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return raw_png(pixels.shape[1], pixels.shape[0], bit_depth=16, rows=rows)


def adobe_cmyk_jpeg():
    return encode(gradient().convert("CMYK"), "JPEG", quality=100, subsampling=0)


def rotated_by_exif():
    stored = gradient().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270° to show upright
    return encode(stored, "PNG", exif=exif)


def half_transparent(mode):
    image = gradient().convert("LA" if mode == "LA" else "RGBA")
    image.putalpha(Image.new("L", image.size, 128))
    return image


def over_white(image):
    pixels = np.asarray(image.convert("RGB")).astype(float)
    return Image.fromarray(np.round((pixels * 128 + 255 * 127) / 255).astype(np.uint8))


def palette_with_a_transparent_colour():
    image = Image.new("P", (12, 12), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (6, 0, 12, 12))
    return encode(image, "PNG", transparency=0)


def left_white_right_blue():
    image = Image.new("RGB", (12, 12), "white")
    image.paste((0, 0, 200), (6, 0, 12, 12))
    return image


def animation(kind):
    frames = [gradient(), Image.new("RGB", (12, 12), "black"), Image.new("RGB", (12, 12), "white")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **lossless)


def half_range(top):
    return Image.fromarray((grey_levels(top) / top * 255).round().astype(np.uint8)).convert("RGB")


GREY = gradient().convert("L")
HANDLED = {
    # what is in the file: (its bytes, the face that comes out, tolerance, what is noted)
    "png": (encode(gradient(), "PNG"), gradient(), 0, ()),
    "bmp": (encode(gradient(), "BMP"), gradient(), 0, ()),
    "jpeg": (encode(gradient(), "JPEG", quality=100, subsampling=0), gradient(), 8, ()),
    "webp": (encode(gradient(), "WEBP", lossless=True), gradient(), 0, ()),
    "grey": (encode(GREY, "PNG"), GREY.convert("RGB"), 0, ()),
    "black and white": (encode(gradient().convert("1"), "PNG"), gradient().convert("1").convert("RGB"), 0, ()),
    "palette": (encode(gradient().quantize(256), "PNG"), gradient(), 40, ()),
    "palette with transparency": (
        palette_with_a_transparent_colour(),
        left_white_right_blue(),
        0,
        ("transparency laid over white",),
    ),
    "cmyk jpeg": (adobe_cmyk_jpeg(), gradient(), 8, ("CMYK turned into RGB",)),
    "alpha": (
        encode(half_transparent("RGBA"), "PNG"),
        over_white(gradient()),
        1,
        ("transparency laid over white",),
    ),
    "grey with alpha": (
        encode(half_transparent("LA"), "PNG"),
        over_white(GREY),
        1,
        ("transparency laid over white",),
    ),
    "16-bit grey png": (
        encode(Image.fromarray(grey_levels(65535).astype(np.uint16)), "PNG"),
        half_range(65535),
        1,
        ("scaled to 8 bits",),
    ),
    "16-bit grey tiff": (
        encode(Image.fromarray(grey_levels(65535).astype(np.uint16)), "TIFF"),
        half_range(65535),
        1,
        ("scaled to 8 bits",),
    ),
    "32-bit integers": (
        encode(Image.fromarray(grey_levels(65535).astype(np.int32)), "TIFF"),
        half_range(65535),
        1,
        ("scaled to 8 bits",),
    ),
    "floats up to 1": (
        encode(Image.fromarray(grey_levels(11).astype(np.float32) / 11), "TIFF"),
        half_range(11),
        1,
        ("scaled to 8 bits",),
    ),
    "floats up to 255": (
        encode(Image.fromarray((grey_levels(11) / 11 * 200).astype(np.float32)), "TIFF"),
        Image.fromarray((grey_levels(11) / 11 * 200).round().astype(np.uint8)).convert("RGB"),
        1,
        ("scaled to 8 bits",),
    ),
    "floats of their own range": (
        encode(Image.fromarray((grey_levels(11) - 5).astype(np.float32)), "TIFF"),
        half_range(11),
        1,
        ("scaled to 8 bits",),
    ),
    "16-bit rgb png": (
        rgb_png_of_16_bits(np.asarray(gradient()).astype(np.uint16) * 257),
        gradient(),
        1,
        ("scaled to 8 bits",),
    ),
    "rotated by exif": (rotated_by_exif(), gradient(), 0, ()),
    "animated gif": (animation("GIF"), gradient(), 40, ("first of 3 frames",)),
    "animated webp": (animation("WEBP"), gradient(), 0, ("first of 3 frames",)),
    "animated png": (animation("PNG"), gradient(), 0, ("first of 3 frames",)),
}


@pytest.mark.parametrize("kind", HANDLED)
def test_pictures_of_every_kind_become_upright_rgb_and_the_losses_are_noted(kind, tmp_path):
    content, expected, tolerance, notes = HANDLED[kind]
    path = tmp_path / "face of one kind"  # what a file is must not depend on its name
    path.write_bytes(content)
    picture = read_picture(path)
    assert picture.image.mode == "RGB"
    assert picture.notes == notes
    difference = np.asarray(picture.image).astype(int) - np.asarray(expected).astype(int)
    assert abs(difference).max() <= tolerance
    assert read_image(path).tobytes() == picture.image.tobytes()


def test_the_sixteen_bit_rgb_tiff_of_a_scanner_is_read_or_refused_in_one_line(tmp_path):
    """Pillow reads some of these kinds and not others; neither may end in a traceback."""
    path = tmp_path / "scan.tif"
    pixels = np.asarray(gradient()).astype("<u2") * 257
    tags = [(256, 3, 12), (257, 3, 12), (258, 3, None), (259, 3, 1), (262, 3, 2), (273, 4, None), (277, 3, 3)]
    tags += [(278, 3, 12), (279, 4, pixels.nbytes)]
    end = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, kind, value in tags:
        if tag == 258:
            entries += struct.pack("<HHII", tag, kind, 3, end)
        elif tag == 273:
            entries += struct.pack("<HHII", tag, kind, 1, end + 6)
        else:
            entries += struct.pack("<HHII", tag, kind, 1, value)
    body = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + pixels.tobytes())
    assert abs(np.asarray(read_image(path)).astype(int) - np.asarray(gradient()).astype(int)).max() <= 1


def test_not_a_number_in_a_floating_point_picture_is_black(tmp_path):
    values = np.ones((12, 12), np.float32)
    values[0, 0], values[1, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "x.tif")
    pixels = np.asarray(read_image(tmp_path / "x.tif"))
    assert pixels[0, 0].tolist() == pixels[1, 1].tolist() == [0, 0, 0]
    assert pixels[2, 2].tolist() == [255, 255, 255]


NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
VALID = {kind: encode(NOISY, kind) for kind in ("PNG", "JPEG", "WEBP")}
REFUSED = {
    "text": (b"this is not a picture at all", "not a picture"),
    "html of a failed download": (b"<!DOCTYPE html><title>404</title>", "not a picture"),
    "empty": (b"", "empty"),
    "half a png": (VALID["PNG"][: len(VALID["PNG"]) // 2], "cut short"),
    "half a jpeg": (VALID["JPEG"][: len(VALID["JPEG"]) // 2], "cut short"),
    "half a webp": (VALID["WEBP"][: len(VALID["WEBP"]) // 2], "cut short"),
    "the first bytes of a png": (VALID["PNG"][:8], "convert it|copy it again"),
    "a png with a flipped byte": (VALID["PNG"][:60] + b"\x55\xaa" + VALID["PNG"][62:], "copy it again"),
    "1×1": (encode(Image.new("RGB", (1, 1)), "PNG"), "1×1 is too small"),
    "3×300": (encode(Image.new("RGB", (3, 300)), "PNG"), "3×300 is too small"),
    "20,000×20,000": (raw_png(20_000, 20_000, 1, 0, bytes(20_000 * 2_501)), "more than 100 megapixels; crop"),
    "a header that promises 11,000×11,000": (raw_png(11_000, 11_000), "more than 100 megapixels; crop"),
    "a header that promises 2³¹": (raw_png(2**31 - 1, 2**31 - 1), "crop the face"),
    "a png of no pixels": (raw_png(0, 0), "not a picture|copy it again|too small"),
}


def test_a_larger_picture_is_read_where_it_is_allowed_and_refused_with_the_memory_that_it_takes(monkeypatch):
    content = encode(gradient().resize((60, 50)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, which is lower than what is allowed
    assert decode_picture(content, "scan.png", 3000).image.size == (60, 50)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ImageError, match=r"^scan.png: 60×50 is more than 0\.002999 megapixels; .*--max-pixels 1,"):
        decode_picture(content, "scan.png", 2999)
    large = raw_png(20_000, 10_000)
    with pytest.raises(ImageError, match=r"--max-pixels 200, which takes about 5.0 GB of memory"):
        decode_picture(large, "scan.png")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_face_is_refused_in_one_line_that_names_the_file(kind, tmp_path):
    content, message = REFUSED[kind]
    path = tmp_path / "bad [face].png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    path.write_bytes(REFUSED["20,000×20,000"][0])
    monkeypatch.setattr(images.reading, "samples_of", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="crop"):
        read_image(path)


def test_missing_files_folders_and_pipes_are_refused_with_the_remedy(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "missing.png", "No such file.*check the name"),
        (tmp_path, "is a folder; name the pictures inside it"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / ("x" * 300 + ".png"), "name too long"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            read_image(path)
        assert str(path) in str(caught.value)


def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "private.png"
    path.write_bytes(VALID["PNG"])

    def denied(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)


@st.composite
def damaged_files(draw):
    content = bytearray(VALID[draw(st.sampled_from(sorted(VALID)))])
    if draw(st.booleans()):
        return bytes(content[: draw(st.integers(0, len(content) - 1))])
    for _ in range(draw(st.integers(1, 8))):
        content[draw(st.integers(0, min(len(content) - 1, draw(st.sampled_from([64, 1 << 20])))))] = draw(
            st.integers(0, 255)
        )
    return bytes(content)


@given(damaged_files())
@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_decoded_or_refused_but_nothing_else_happens(tmp_path, content):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    message, image = "", None
    try:
        image = read_image(path)
    except ImageError as error:
        message = str(error)
    assert image is None or (image.mode == "RGB" and min(image.size) >= images.MIN_SIDE)
    assert image is not None or (message.startswith(f"{path}: ") and "\n" not in message)


@given(st.integers(4, 40), st.integers(4, 40))
@settings(max_examples=25, deadline=None)
def test_the_square_is_the_centre_of_the_picture(width, height):
    picture = gradient(width, height)
    result = square(picture)
    side = min(width, height)
    assert result.size == (side, side)
    left, top = (width - side) // 2, (height - side) // 2
    assert np.array_equal(result, np.asarray(picture)[top : top + side, left : left + side])


def test_eight_bit_pictures_survive_the_way_through_a_tensor():
    tensor = to_tensor(gradient())
    assert tensor.shape == (3, 12, 12)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert to_pil(tensor).tobytes() == gradient().tobytes()


def test_resizing_keeps_the_mean_and_does_not_alias():
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    assert resize(stripes, 16).abs().max() < 0.1
    assert resize(stripes, 64) is stripes


METADATA = {"seed": 3, "name": "Zoë 顔", "nested": {"list": [1, 2.5, None]}}


def test_metadata_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "a [b] ü 顔.png"
    write_png(path, gradient(), METADATA)
    assert read_metadata(path) == METADATA
    assert read_image(path).tobytes() == gradient().tobytes()


def test_names_that_are_not_utf_8_survive_in_metadata(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_png(tmp_path / "x.png", gradient(), {"input": name})
    assert read_metadata(tmp_path / "x.png") == {"input": name}


def test_the_same_picture_and_metadata_give_the_same_bytes(tmp_path):
    write_png(tmp_path / "a.png", gradient(), METADATA)
    write_png(tmp_path / "b.png", gradient(), dict(reversed(METADATA.items())))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(encode(gradient(), "PNG"), "carries no faceprior metadata", id="another program's png"),
        pytest.param(encode(gradient(), "JPEG"), "carries no faceprior metadata", id="a jpeg"),
        pytest.param(b"text", "not a picture", id="no image"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(None, "check the name", id="missing"),
        pytest.param("{broken", "metadata is damaged", id="broken json"),
        pytest.param("[1]", "metadata is damaged", id="not an object"),
    ],
)
def test_metadata_of_other_files_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "x.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        info = PngInfo()
        info.add_itxt(images.METADATA_KEY, content)
        gradient().save(path, pnginfo=info)
    with pytest.raises(ImageError, match=message) as caught:
        read_metadata(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


FAILURES = {
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "Ctrl-C": KeyboardInterrupt(),
    "a bug": ValueError("unexpected"),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("existing", [None, b"an earlier result"])
def test_a_failure_in_the_middle_of_writing_leaves_nothing_half_written(failure, existing, tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    if existing is not None:
        path.write_bytes(existing)

    def save(_image, file, **_options):
        file.write(b"\x89PNG half")
        assert not list(tmp_path.glob("*half*"))
        raise failure

    monkeypatch.setattr(Image.Image, "save", save)
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        write_png(path, gradient())
    if isinstance(failure, OSError):
        assert str(caught.value).startswith(f"{path}: cannot be written (No space left on device)")
    assert [file.name for file in tmp_path.iterdir()] == ([] if existing is None else ["x.png"])
    assert existing is None or path.read_bytes() == existing


def test_while_a_picture_is_written_no_png_is_seen(tmp_path, monkeypatch):
    seen = []
    save = Image.Image.save

    def watched(image, file, **options):
        save(image, file, **options)
        seen.extend(tmp_path.glob("*.png"))

    monkeypatch.setattr(Image.Image, "save", watched)
    write_png(tmp_path / "x.png", gradient())
    assert seen == []
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


def test_an_earlier_result_is_replaced(tmp_path):
    path = tmp_path / "x.png"
    write_png(path, gradient(), {"run": 1})
    write_png(path, gradient(), {"run": 2})
    assert read_metadata(path) == {"run": 2}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_results_have_the_permissions_that_the_umask_gives(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write_png(tmp_path / "x.png", gradient())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.png").stat().st_mode) == mode


@pytest.mark.parametrize("place", ["a file instead of a folder", "no such folder", "a folder of that name"])
def test_an_impossible_place_is_refused_in_one_line(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.png").mkdir()
    path = {
        "a file instead of a folder": tmp_path / "file" / "x.png",
        "no such folder": tmp_path / "missing" / "x.png",
        "a folder of that name": tmp_path / "taken.png",
    }[place]
    with pytest.raises(OutputError, match="--output") as caught:
        write_png(path, gradient())
    assert str(caught.value).startswith(f"{path}: cannot be written")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.png"]


def test_numpy_pictures_can_be_written_too(tmp_path):
    write_png(tmp_path / "x.png", np.asarray(gradient()), {})
    assert read_image(tmp_path / "x.png").tobytes() == gradient().tobytes()
    assert json.dumps(read_metadata(tmp_path / "x.png")) == "{}"


def test_the_animations_of_these_tests_are_animated():
    for kind in ("GIF", "WEBP", "PNG"):
        assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(animation(kind)))))) == 3
