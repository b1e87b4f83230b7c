"""Pictures of every format come back as they were, apart from what a format cannot hold."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from faceprior.errors import ImageError, OptionError, OutputError
from faceprior.faces.paste import enlarge
from faceprior.images import (
    FORMATS,
    MIN_SIDE,
    Picture,
    decode_picture,
    encode_picture,
    read_image,
    read_metadata,
    read_picture,
    spread_under,
    to_tensor,
    write_file,
)
from icc_profiles import grey_profile, neutral_profile, wide_gamut_profile

TOLERANCE = {"PNG": 0, "TIFF": 0, "JPEG": 8, "WEBP": 24, "HEIF": 10, "AVIF": 10}  # of 255
LOSSLESS = [kind for kind, tolerance in TOLERANCE.items() if tolerance == 0]
METADATA = {"seed": 3, "input": "Zoë <&> 顔 \udce9.jpg"}


@pytest.fixture(params=FORMATS)
def kind(request):
    if request.param == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    return request.param


def smooth(channels, height=24, width=40):
    y, x = np.mgrid[0:height, 0:width] / 40
    planes = [0.1 + 0.8 * x, 0.9 - y, 0.5 + 0.4 * np.sin(3 * x + 2 * y), 0.2 + y + 0.1 * x]
    return (np.stack(planes[:channels], axis=-1) * 255).round().astype(np.uint8)


def noise(shape, dtype):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def in_memory(pixels, alpha=None, kind="PNG", **more):
    return Picture(Image.new("RGB", (4, 4)), (), pixels, alpha, kind, **more)


def write_picture(path, pixels, like, metadata=None, file_format=None):
    write_file(path, encode_picture(pixels, like, metadata, file_format, name=path))


def camera_exif(orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "A camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.ImageDescription] = "Grandmother, 1931"
    photo = {0x9003: "2020:01:01 00:00:00", 0x9286: b"ASCII\0\0\0a comment", 0x927C: b"maker", 0xA002: 1, 0xA003: 1}
    exif[ExifTags.IFD.Exif] = photo
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 30.0, 1.5)}
    return exif


def xmp(inside):
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {inside}/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def difference(one, other):
    return int(abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_grey_colour_and_opacity_come_back_in_every_format(kind, channels, transparent, tmp_path):
    if kind == "JPEG" and transparent:
        pytest.skip("JPEG holds no opacity")
    pixels, alpha = smooth(channels), smooth(4)[..., 3] if transparent else None
    write_picture(tmp_path / "x", pixels, in_memory(pixels, alpha, kind))
    picture = read_picture(tmp_path / "x")
    assert picture.format == kind
    if kind not in ("PNG", "TIFF", "JPEG") and channels == 1 and picture.pixels.shape[-1] == 3:
        channels = 3  # these hold no grey, or no grey with opacity
    assert picture.pixels.shape == (24, 40, channels)
    assert difference(picture.pixels, pixels) <= TOLERANCE[kind]
    assert (picture.alpha is None) is not transparent
    if transparent:
        assert difference(picture.alpha, alpha) <= TOLERANCE[kind]


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_sixteen_bits_come_back_to_the_last_bit(kind, channels, transparent, tmp_path):
    if kind == "TIFF" and channels == 1 and transparent:
        pytest.skip("written as colour: Pillow reads no 16-bit grey with opacity from a TIFF")
    pixels = noise((23, 17, channels), np.uint16)
    alpha = noise((23, 17), np.uint16) if transparent else None
    write_picture(tmp_path / "x", pixels, in_memory(pixels, alpha, kind))
    picture = read_picture(tmp_path / "x")
    assert picture.pixels.dtype == np.uint16
    assert np.array_equal(picture.pixels, pixels)
    assert np.array_equal(picture.alpha, alpha) if transparent else picture.alpha is None
    assert "scaled to 8 bits" in picture.notes
    assert picture.lost == ()
    with Image.open(tmp_path / "x") as image:  # what Pillow alone makes of it: the high bytes
        high = np.asarray(image).astype(int).reshape(23, 17, -1)
    assert channels == 1 or np.array_equal(high[..., :channels], pixels >> 8)


def test_large_sixteen_bit_pictures_are_written_in_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("faceprior.images.sixteen._BLOCK_BYTES", 1000)
    pixels = noise((50, 30, 3), np.uint16)
    for kind in LOSSLESS:
        write_picture(tmp_path / kind, pixels, in_memory(pixels, kind=kind))
        assert np.array_equal(read_picture(tmp_path / kind).pixels, pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_grey_tiffs_of_other_programs_keep_every_bit(compression, order, tmp_path):
    levels = noise((13, 19), np.uint16)
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, (19, 13), levels.astype(f"{order}u2").tobytes())
    image.save(tmp_path / "x", "TIFF", compression=compression)
    assert np.array_equal(read_picture(tmp_path / "x").pixels[..., 0], levels)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_sixteen_bit_pngs_of_other_programs_keep_every_bit(colour_type, channels, tmp_path):
    values = noise((13, 19, channels), np.uint16)
    (tmp_path / "x").write_bytes(unfiltered_png(values, colour_type))
    picture = read_picture(tmp_path / "x")
    colours = channels - 1 if channels in (2, 4) else channels
    assert np.array_equal(picture.pixels, values[..., :colours])
    assert channels == colours or np.array_equal(picture.alpha, values[..., -1])


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_the_colour_that_means_transparent_in_a_sixteen_bit_png_does(colour_type, channels, tmp_path):
    values = noise((13, 19, channels), np.uint16)
    (tmp_path / "x").write_bytes(unfiltered_png(values, colour_type, values[2, 3].astype(">u2").tobytes()))
    alpha = read_picture(tmp_path / "x").alpha
    assert alpha[2, 3] == 0
    assert (alpha == 65535).sum() == alpha.size - 1


def unfiltered_png(values, colour_type, transparent=None):
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    chunks += [(b"tRNS", transparent)] if transparent else []
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


# --- TIFFs of other programs


def tiff_of(path, samples, **how):
    """Write samples with tifffile, (H, W, C), or as planes if `planarconfig` says so."""
    tifffile = pytest.importorskip("tifffile")
    if how.get("planarconfig") == "separate":
        samples = np.moveaxis(samples, -1, 0)
    tifffile.imwrite(path, samples, metadata=None, **how)
    return path


PLAIN, STRIPS, TILES = {}, {"rowsperstrip": 3}, {"tile": (16, 16)}
DEFLATE = {"compression": "zlib", "predictor": True}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("how", [PLAIN, STRIPS, TILES, DEFLATE, {**STRIPS, **DEFLATE}, {**TILES, **DEFLATE}])
@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_sixteen_bit_colour_keeps_every_bit_side_by_side_and_in_planes(layout, how, order, tmp_path):
    values = noise((21, 34, 3), np.uint16)
    tiff_of(tmp_path / "x", values, photometric="rgb", planarconfig=layout, byteorder=order, **how)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, values)
    assert picture.lost == ()
    assert np.array_equal(np.asarray(read_image(tmp_path / "x")), (values.astype(int) + 128) // 257)
    assert decode_picture((tmp_path / "x").read_bytes(), "x").image.tobytes() == picture.image.tobytes()


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_opacity_in_a_sixteen_bit_tiff_is_kept_multiplied_with_the_colours_or_not(layout, order, tmp_path):
    colours, alpha = noise((13, 19, 3), np.uint16), noise((13, 19, 1), np.uint16)
    alpha[0, :5], alpha[1, :5], alpha[2, :5] = 0, 65535, 1
    multiplied = np.rint(colours.astype(float) * alpha / 65535).astype(np.uint16)
    for extra, stored in (("unassalpha", colours), ("assocalpha", multiplied)):
        values = np.concatenate([stored, alpha], -1)
        how = {"photometric": "rgb", "planarconfig": layout, "byteorder": order, "extrasamples": [extra]}
        picture = read_picture(tiff_of(tmp_path / extra, values, **how))
        assert np.array_equal(picture.alpha, alpha[..., 0])
        assert picture.pixels.dtype == np.uint16
        assert picture.lost == ()
        if extra == "unassalpha":
            assert np.array_equal(picture.pixels, colours)
            continue
        assert np.array_equal(picture.pixels[1, :5], colours[1, :5])
        assert (picture.pixels[0, :5] == 0).all()
        again = np.rint(picture.pixels.astype(float) * alpha / 65535)  # what the file says comes back
        assert np.array_equal(again, multiplied)


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cmyk_becomes_rgb_of_8_bits_and_that_is_said(layout, dtype, tmp_path):
    most = np.iinfo(dtype).max
    values = np.array([(0, 0, 0, 0), (most, 0, 0, 0), (0, most, 0, 0), (0, 0, most, 0), (0, 0, 0, most)], dtype)
    values = values.reshape(1, 5, 4).repeat(4, 0)
    picture = read_picture(tiff_of(tmp_path / "x", values, photometric="separated", planarconfig=layout))
    white_cyan_magenta_yellow_black = [(255, 255, 255), (0, 255, 255), (255, 0, 255), (255, 255, 0), (0, 0, 0)]
    assert picture.pixels[0].tolist() == [list(colour) for colour in white_cyan_magenta_yellow_black]
    depth = ("16-bit samples scaled to 8 bits",) if dtype == np.uint16 else ()
    assert picture.lost == (*depth, "CMYK turned into RGB without a profile")


def test_a_tiff_in_planes_keeps_what_it_says_of_itself(tmp_path):
    values = noise((13, 19, 3), np.uint16)
    say = [(274, "H", 1, 6, True), (270, "s", 0, "a scan", True), (271, "s", 0, "a maker", True)]
    how = {"photometric": "rgb", "planarconfig": "separate", "resolution": (300, 150), "resolutionunit": 2}
    tiff_of(tmp_path / "x", values, extratags=say, iccprofile=wide_gamut_profile(), **how)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, np.rot90(values, -1))
    assert picture.icc_profile == wide_gamut_profile()
    assert picture.dpi == (300, 150)
    exif = Image.Exif()
    exif.load(picture.exif)
    assert exif[271] == "a maker"


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.uint8, 8), (np.uint16, 16), (np.float32, 32)], ids=["8 bits", "16 bits", "floating point"]
)
def test_grey_whose_zero_is_white_is_no_negative(dtype, bits, tmp_path):
    values = np.linspace(0, 1 if bits == 32 else np.iinfo(dtype).max, 20 * 30).reshape(20, 30).astype(dtype)
    light, dark = (
        read_picture(tiff_of(tmp_path / name, values, photometric=name)).pixels.astype(int)
        for name in ("minisblack", "miniswhite")
    )
    assert light[0, 0, 0] == 0
    assert np.array_equal(light.max() - light, dark)
    assert light.max() == (255 if bits == 8 else 65535)


def test_twelve_bits_are_spread_over_sixteen(tmp_path):
    values = np.linspace(0, 4095, 10 * 20).astype(np.uint16).reshape(10, 20)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    tags = {256: 20, 257: 10, 258: 12, 259: 1, 262: 1, 277: 1, 278: 10, 273: (0,), 279: (len(packed),)}
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    with (tmp_path / "x").open("wb") as file:
        directory.save(file)
        file.write(packed)
    assert read_picture(tmp_path / "x").pixels[..., 0] == pytest.approx(values * (65535 / 4095), abs=16)
    assert read_picture(tmp_path / "x").pixels.max() == 65535


def test_what_a_tiff_in_planes_cannot_be_read_from_is_refused_in_one_line(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.moveaxis(noise((13, 19, 3), np.uint16), -1, 0)
    how = {"photometric": "rgb", "planarconfig": "separate", "metadata": None}
    for name, own, more in (("big", values, {"bigtiff": True}), ("signed", values.view(np.int16), {})):
        tifffile.imwrite(tmp_path / name, own, **how, **more)
        with pytest.raises(ImageError, match=rf"{name}: is ") as caught:
            read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)


# --- what is left out is counted


@pytest.mark.parametrize(
    ("dtype", "channels", "said"),
    [
        (np.uint8, 4, "1 channel left out"),
        (np.uint8, 5, "2 channels left out"),
        (np.uint16, 4, "1 channel left out"),
    ],
)
def test_channels_of_a_tiff_that_are_no_colours_are_counted(dtype, channels, said, tmp_path):
    values = noise((13, 19, channels), dtype)
    extra = ["unspecified"] * (channels - 3)
    tiff_of(tmp_path / "x", values, photometric="rgb", extrasamples=extra)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, values[..., :3])
    assert picture.alpha is None
    assert picture.lost == (said,)


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_of_a_tiff_are_counted(layout, dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pages = [noise((13, 19, 3), dtype), *(np.zeros((13, 19, 3), dtype),) * 2]
    with tifffile.TiffWriter(tmp_path / "x") as file:
        for page in pages:
            stored = np.moveaxis(page, -1, 0) if layout == "separate" else page
            file.write(stored, photometric="rgb", planarconfig=layout, metadata=None)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, pages[0])
    assert picture.lost == ("first of 3 pages",)
    assert "first of 3 pages" in picture.notes


def photoshop_file(layers, channels=3):
    """A flattened red PSD of 8×6 pixels with empty layers in it."""
    record = (
        struct.pack(">4iH", 0, 0, 0, 0, 0) + b"8BIMnorm" + bytes([255, 0, 0, 0]) + struct.pack(">I", 12) + bytes(12)
    )
    info = struct.pack(">h", -layers) + record * layers
    info += bytes(-len(info) % 2)
    section = struct.pack(">I", len(info)) + info + bytes(4)
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, 6, 8, 8, 3)
    planes = bytes([255]) * 48 + bytes(48 * (channels - 1))
    return header + bytes(8) + struct.pack(">I", len(section)) + section + b"\0\0" + planes


@pytest.mark.parametrize(("layers", "said"), [(1, "1 layer left out"), (3, "3 layers left out")])
def test_layers_of_a_photoshop_file_are_counted_and_its_flat_picture_is_read(layers, said):
    picture = decode_picture(photoshop_file(layers), "x.psd")
    assert picture.lost == (said,)
    assert (picture.pixels == (255, 0, 0)).all()
    assert picture.notes == ()
    more = decode_picture(photoshop_file(layers, channels=5), "x.psd")
    assert more.lost == (said, "2 channels left out")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("count", "said"), [(2, ("2 layers left out",)), (-4, ("4 layers left out",)), (None, ())])
def test_photoshops_layers_in_a_tiff_are_counted(count, said, order, tmp_path):
    def block(key, content):
        signature, key = (b"8BIM", key) if order == ">" else (b"MIB8", key[::-1])
        return signature + key + struct.pack(f"{order}I", len(content)) + content + bytes(-len(content) % 4)

    blocks = b"Adobe Photoshop Document Data Block\0" + block(b"Patt", b"abcde")
    if count is not None:
        blocks += block(b"Layr", struct.pack(f"{order}h", count) + bytes(9))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[37724] = blocks
    info.tagtype[37724] = 7
    Image.new("RGB", (12, 9)).save(tmp_path / "x", "TIFF", tiffinfo=info)
    assert read_picture(tmp_path / "x").lost == said


def test_hidden_pictures_of_a_heic_are_counted(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.register_heif_opener()
    Image.new("RGB", (64, 64)).save(file, "HEIF")
    original = pillow_heif.HeifImageFile._init_from_heif_file

    def with_gain_map(self, *arguments):
        original(self, *arguments)
        self.info.update(aux={"urn:com:apple:photo:2020:aux:hdrgainmap": [49]}, depth_images=[object()])

    monkeypatch.setattr(pillow_heif.HeifImageFile, "_init_from_heif_file", with_gain_map)
    assert decode_picture(file.getvalue(), "x.heic").lost == ("2 hidden pictures left out",)


UPRIGHT = {  # EXIF orientation: how the stored samples are turned to stand upright
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_turned_upright_once(kind, channels, orientation, tmp_path):
    stored, exif = smooth(channels), camera_exif(orientation).tobytes()
    Image.fromarray(stored if channels == 3 else stored[..., 0]).save(tmp_path / "x", kind, exif=exif, quality=95)
    upright = UPRIGHT[orientation](stored)
    picture = read_picture(tmp_path / "x")
    assert difference(picture.pixels, upright) <= 2 * TOLERANCE[kind]
    assert picture.image.size == upright.shape[1::-1]

    write_picture(tmp_path / "y", picture.pixels, picture)
    with Image.open(tmp_path / "y") as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        plain = np.asarray(image).reshape(*upright.shape[:2], -1)
    assert difference(plain, upright) <= 3 * TOLERANCE[kind]
    assert np.array_equal(read_picture(tmp_path / "y").pixels, plain)


@pytest.mark.parametrize("orientation", [2, 6])
@pytest.mark.parametrize("kind", LOSSLESS)
def test_sixteen_bit_pictures_are_turned_upright_too(kind, orientation, tmp_path):
    pixels = noise((12, 20, 3), np.uint16)
    like = in_memory(pixels, kind=kind, exif=camera_exif(orientation).tobytes())  # as a camera would write it
    write_picture(tmp_path / "x", pixels, like)
    assert np.array_equal(read_picture(tmp_path / "x").pixels, UPRIGHT[orientation](pixels))


def test_an_orientation_that_only_xmp_gives_is_applied_once_as_well(tmp_path):
    stored = smooth(3)
    Image.fromarray(stored).save(tmp_path / "x", "WEBP", lossless=True, xmp=xmp('tiff:Orientation="6"'))
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, np.rot90(stored, -1))
    write_picture(tmp_path / "y", picture.pixels, picture)
    assert np.array_equal(read_picture(tmp_path / "y").pixels, picture.pixels)


def test_profile_exif_xmp_and_resolution_are_kept(kind, tmp_path):
    packet = xmp('dc:title="Grandmother"')
    pixels = smooth(3)
    exif, text = camera_exif(6), PngInfo()
    text.add_itxt("XML:com.adobe.xmp", packet.decode())
    if kind == "TIFF":
        exif[TiffImagePlugin.XMP] = packet
    options = {"exif": exif.tobytes(), "icc_profile": wide_gamut_profile(), "quality": 95}
    its_own = {"PNG": {"pnginfo": text}, "TIFF": {}}.get(kind, {"xmp": packet})
    Image.fromarray(pixels).save(tmp_path / "x", kind, dpi=(300, 300), **options, **its_own)
    for source, target, metadata in (("x", "y", METADATA), ("y", "z", {"seed": 4})):  # a result can be restored too
        picture = read_picture(tmp_path / source)
        assert picture.lost == ()
        write_picture(tmp_path / target, picture.pixels, picture, metadata)
    with Image.open(tmp_path / "z") as image:
        image.load()
        assert image.info["icc_profile"] == options["icc_profile"]
        exif = image.getexif()
        assert exif[ExifTags.Base.Make] == "A camera"
        assert exif[ExifTags.Base.ImageDescription] == "Grandmother, 1931"
        photo = exif.get_ifd(ExifTags.IFD.Exif)
        assert photo[0x9003] == "2020:01:01 00:00:00"
        assert photo[0x9286] == b"ASCII\0\0\0a comment"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (52.0, 30.0, 1.5)
        assert (photo[0xA002], photo[0xA003]) == (24, 40)  # the size is the upright one
        assert image.size == (24, 40)
        assert image.info["xmp"].count(b"Grandmother") == 1
        # one element: the earlier one was replaced; a PNG has a chunk for it
        assert image.info["xmp"].count(b"faceprior:made>") == (0 if kind == "PNG" else 2)
        if kind in ("PNG", "JPEG", "TIFF"):
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert read_metadata(tmp_path / "z") == {"seed": 4, "file": {"format": kind, **FORMATS[kind]}}


def test_the_thumbnail_of_the_unrestored_picture_is_not_kept(tmp_path):
    thumbnail = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(thumbnail, "JPEG")
    exif = io.BytesIO(camera_exif().tobytes())
    # IFD1 with the tags that lead to a thumbnail, chained behind IFD0
    body = exif.getvalue()[6:]
    count = struct.unpack_from("<H", body, 8)[0]
    first = 8 + 2 + 12 * count
    entries = struct.pack("<HHHIIHHII", 2, 513, 4, 1, len(body) + 30, 514, 4, 1, len(thumbnail.getvalue()))
    body = body[:first] + struct.pack("<I", len(body)) + body[first + 4 :] + entries + struct.pack("<I", 0)
    content = b"Exif\0\0" + body + thumbnail.getvalue()
    Image.fromarray(smooth(3)).save(tmp_path / "x", "JPEG", exif=content)
    picture = read_picture(tmp_path / "x")
    assert thumbnail.getvalue()[:60] in (tmp_path / "x").read_bytes()
    assert thumbnail.getvalue()[:60] not in picture.exif
    assert b"A camera" in picture.exif


def test_metadata_comes_back_from_every_format(kind, tmp_path):
    pixels = smooth(3)
    write_picture(tmp_path / "x", pixels, in_memory(pixels, kind=kind), METADATA)
    assert read_metadata(tmp_path / "x") == {**METADATA, "file": {"format": kind, **FORMATS[kind]}}
    write_picture(tmp_path / "y", pixels, in_memory(pixels, kind=kind))
    with pytest.raises(ImageError, match="no faceprior metadata"):
        read_metadata(tmp_path / "y")


def test_the_same_picture_gives_the_same_bytes_in_every_format(kind, tmp_path):
    pixels = noise((70, 90, 3), np.uint8)
    like = in_memory(pixels, noise((70, 90), np.uint8), kind, exif=camera_exif().tobytes())
    write_picture(tmp_path / "x", pixels, like, METADATA)
    write_picture(tmp_path / "y", pixels, like, dict(reversed(METADATA.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_lossless_webp_stays_lossless_and_a_lossy_one_lossy(tmp_path):
    for lossless in (True, False):
        Image.fromarray(noise((40, 40, 3), np.uint8)).save(
            tmp_path / "x", "WEBP", lossless=lossless, exif=b"Exif\0\0"
        )
        picture = read_picture(tmp_path / "x")
        assert picture.lossless is lossless
        write_picture(tmp_path / "y", picture.pixels, picture, {})
        assert np.array_equal(read_picture(tmp_path / "y").pixels, picture.pixels) is lossless
        assert read_metadata(tmp_path / "y")["file"].get("lossless", False) is lossless


def test_formats_that_cannot_be_written_become_png(tmp_path):
    Image.fromarray(smooth(3)).save(tmp_path / "x", "BMP")
    picture = read_picture(tmp_path / "x")
    assert (picture.format, picture.written_as) == ("BMP", "PNG")
    write_picture(tmp_path / "y", picture.pixels, picture)
    assert read_picture(tmp_path / "y").format == "PNG"


def test_another_format_keeps_what_it_can_hold(kind, tmp_path):
    pixels, alpha = noise((24, 40, 3), np.uint16) // 64 * 0 + 32896, np.full((24, 40), 32896, np.uint16)
    like = in_memory(pixels, alpha, exif=camera_exif().tobytes())
    write_picture(tmp_path / "x", pixels, like, file_format=kind)
    picture = read_picture(tmp_path / "x")
    assert picture.format == kind
    depth = 65535 if kind in LOSSLESS else 255
    grey = 192 / 255 if kind == "JPEG" else 128 / 255  # JPEG: half over white
    assert picture.pixels == pytest.approx(np.full((24, 40, 3), round(grey * depth)), abs=1)
    assert kind == "JPEG" or picture.alpha == pytest.approx(np.full((24, 40), round(depth * 128 / 255)), abs=1)
    assert b"A camera" in picture.exif


def test_formats_that_nobody_knows_are_refused(tmp_path):
    pixels = smooth(3)
    with pytest.raises(OptionError, match=r"GIF.*choose one of PNG, JPEG"):
        write_picture(tmp_path / "x", pixels, in_memory(pixels), file_format="GIF")


def test_opacity_is_enlarged_with_the_picture(tmp_path):
    alpha = np.zeros((24, 40), np.uint8)
    alpha[:, 20:] = 255
    write_picture(tmp_path / "x", smooth(3, 48, 80), in_memory(smooth(3), alpha))
    enlarged = read_picture(tmp_path / "x").alpha
    assert enlarged.shape == (48, 80)
    assert enlarged[:, :34].max() == 0
    assert enlarged[:, 46:].min() == 255


def test_a_picture_too_long_for_its_format_is_refused_before_it_is_written(tmp_path):
    pixels = np.zeros((4, 16_384, 3), np.uint8)
    with pytest.raises(OutputError, match="16384×4 is more than the 16383 pixels a side that WEBP holds"):
        write_picture(tmp_path / "x", pixels, in_memory(pixels, kind="WEBP"))
    assert list(tmp_path.iterdir()) == []


def test_exif_and_xmp_that_are_too_long_for_a_jpeg_do_not_keep_it_from_being_written(tmp_path):
    exif = camera_exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    pixels = smooth(3)
    like = in_memory(pixels, exif=exif.tobytes(), xmp=xmp(f'dc:title="{"x" * 70_000}"'))
    write_picture(tmp_path / "x", pixels, like, METADATA, file_format="JPEG")
    assert read_metadata(tmp_path / "x")["seed"] == 3
    write_picture(tmp_path / "y", pixels, like, file_format="JPEG")
    assert difference(read_picture(tmp_path / "y").pixels, pixels) <= TOLERANCE["JPEG"]


@pytest.mark.parametrize("deep", [False, True])
def test_a_disk_that_fills_leaves_nothing_half_written(kind, deep, tmp_path):
    pixels = noise((100, 100, 3), np.uint16 if deep else np.uint8)
    (tmp_path / "x").write_bytes(b"an earlier result")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            write_picture(tmp_path / "x", pixels, in_memory(pixels, kind=kind), METADATA)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"an earlier result"


def test_heic_without_its_extra_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ImageError, match=r'x.heic: is HEIC.*pip install "faceprior\[heic\]"'):
        read_picture(tmp_path / "x.heic")
    with pytest.raises(OptionError, match=r'pip install "faceprior\[heic\]"'):
        write_picture(tmp_path / "y.heic", smooth(3), in_memory(smooth(3), kind="HEIF"))
    assert [file.name for file in tmp_path.iterdir()] == ["x.heic"]


# Colour


def test_a_wide_gamut_picture_is_srgb_for_the_networks_and_faces_come_back_to_its_space(tmp_path):
    profile = wide_gamut_profile()
    own = smooth(3)
    Image.fromarray(own).save(tmp_path / "x", "PNG", icc_profile=profile)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, own)
    assert difference(np.asarray(picture.image), own) > 10

    in_gamut = smooth(3) // 2 + 64
    to_own = ImageCms.profileToProfile(
        Image.fromarray(in_gamut), ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile))
    )
    restored = to_tensor(Image.fromarray(in_gamut))
    encoded = (picture.from_srgb(restored).permute(1, 2, 0).numpy() + 1) * 127.5
    assert abs(encoded - np.asarray(to_own)).max() < 1.5


def test_the_way_to_the_files_colours_has_no_steps_of_eight_bits():
    like = in_memory(smooth(3), icc_profile=wide_gamut_profile())
    ramp = torch.linspace(-0.9, 0.9, 4001).expand(3, 2, -1).contiguous()
    values = like.from_srgb(ramp)[0, 0]
    assert values.diff().min() > 0
    assert len(values.unique()) > 3900


def test_srgb_under_any_name_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(smooth(3)).save(tmp_path / "x", "PNG", icc_profile=profile)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(np.asarray(picture.image), picture.pixels)
    face = torch.rand(3, 8, 8)
    assert picture.from_srgb(face) is face


def test_a_grey_profile_is_followed_both_ways(tmp_path):
    linear = grey_profile(gamma=1.0)
    own = smooth(1)
    Image.fromarray(own[..., 0]).save(tmp_path / "x", "PNG", icc_profile=linear)
    picture = read_picture(tmp_path / "x")
    assert np.array_equal(picture.pixels, own)
    seen = np.asarray(picture.image)
    assert seen[0, 0, 0] > own[0, 0, 0] + 40  # linear light looks darker than it is
    back = (picture.from_srgb(to_tensor(picture.image)).permute(1, 2, 0).numpy() + 1) * 127.5
    assert abs(back - own).max() < 2.5
    write_picture(tmp_path / "y", picture.pixels, picture, file_format="WEBP")  # which holds no grey
    webp = read_picture(tmp_path / "y")
    assert webp.icc_profile is None
    assert difference(np.asarray(webp.image), seen) <= TOLERANCE["WEBP"]


def test_cmyk_goes_through_its_profile_and_is_said_to(tmp_path):
    ink = Image.new("CMYK", (12, 12), (255, 0, 0, 0))  # cyan; the profile says: any ink is grey
    ink.save(tmp_path / "x", "TIFF", icc_profile=neutral_profile("CMYK"))
    picture = read_picture(tmp_path / "x")
    assert picture.pixels.shape == (12, 12, 3)
    assert np.ptp(picture.pixels[0, 0]) <= 2
    assert picture.icc_profile is None
    assert picture.lost == ("CMYK turned into RGB through its profile",)
    ink.save(tmp_path / "y", "TIFF")
    picture = read_picture(tmp_path / "y")
    assert picture.pixels[0, 0].tolist() == [0, 255, 255]
    assert picture.lost == ("CMYK turned into RGB without a profile",)


def test_a_profile_without_a_way_back_turns_the_whole_picture_into_srgb(tmp_path):
    Image.fromarray(smooth(3)).save(tmp_path / "x", "PNG", icc_profile=neutral_profile("RGB "))
    picture = read_picture(tmp_path / "x")
    assert picture.lost == ("colours turned into 8-bit sRGB",)
    assert picture.icc_profile is None
    assert np.array_equal(picture.pixels, np.asarray(picture.image))
    assert np.ptp(picture.pixels, axis=-1).max() <= 2


@pytest.mark.parametrize("profile", [b"no profile", b"", neutral_profile("CMYK"), grey_profile(2.2)])
def test_a_profile_that_cannot_be_meant_is_left_out(profile, tmp_path):
    Image.fromarray(smooth(3)).save(tmp_path / "x", "PNG", icc_profile=profile)
    picture = read_picture(tmp_path / "x")
    assert picture.icc_profile is None
    assert np.array_equal(np.asarray(picture.image), picture.pixels)
    assert picture.lost == (("a colour profile that cannot be used left out",) if profile else ())


# Damage


def encoded(kind, pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def valid_files():
    said = {"exif": camera_exif(6).tobytes(), "icc_profile": wide_gamut_profile()}
    colour = noise((48, 40, 3), np.uint8)
    files = [encoded(kind, colour, **said) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    files += [encoded("JPEG", smooth(3)), encoded("PNG", smooth(4)), encoded("WEBP", smooth(4), lossless=True)]
    files += [encoded("TIFF", smooth(3), compression="tiff_lzw"), unfiltered_png(noise((20, 20, 3), np.uint16), 2)]
    return files


VALID = valid_files()


@st.composite
def damaged_files(draw):
    content = bytearray(draw(st.sampled_from(VALID)))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content) - 1)) :]
    near = draw(st.sampled_from([64, 700, 1 << 20]))  # headers and profiles matter more than their share
    for _ in range(draw(st.integers(0, 8)) if content else 0):
        content[draw(st.integers(0, min(len(content), near) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@given(damaged_files())
@settings(max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_a_picture_that_can_be_written_or_an_image_error_and_nothing_else(tmp_path, content):
    source, target = tmp_path / "damaged", tmp_path / "written"
    source.write_bytes(content)
    message, picture = "", None
    try:
        picture = read_picture(source)
    except ImageError as error:
        message = str(error)
    if picture is None:
        assert message.startswith(f"{source}: ")
        assert "\n" not in message
        return
    height, width, channels = picture.pixels.shape
    assert picture.image.mode == "RGB"
    assert picture.image.size == (width, height)
    assert min(width, height) >= MIN_SIDE
    assert channels in (1, 3)
    assert picture.alpha is None or picture.alpha.shape == (height, width)
    write_picture(target, picture.pixels, picture, {"seed": 1})
    assert read_metadata(target)["seed"] == 1
    again = read_picture(target)
    if picture.written_as in LOSSLESS:
        assert np.array_equal(again.pixels, picture.pixels)


# what cannot be kept, and what must not be mixed in


def test_an_enlarged_cut_out_has_no_fringe():
    y, x = np.mgrid[:64, :64]
    alpha = np.where(np.hypot(x - 32, y - 32) < 20, 255, 0).astype(np.uint8)
    for depth, dtype in ((1, np.uint8), (257, np.uint16)):
        pixels = (np.where(alpha[..., None] > 0, (200, 60, 40), (0, 255, 0)) * depth).astype(dtype)
        large = enlarge(spread_under(pixels, alpha), 2)
        seen = np.asarray(Image.fromarray(alpha).resize((128, 128), Image.Resampling.LANCZOS)) > 0
        assert np.abs(large[seen].astype(int) - np.array((200, 60, 40)) * depth).max() <= depth
        assert (spread_under(pixels, alpha)[alpha > 0] == pixels[alpha > 0]).all()
        fringe = enlarge(pixels, 2)[seen].astype(int) - np.array((200, 60, 40)) * depth
        assert np.abs(fringe).max() > 50 * depth


@pytest.mark.parametrize("tags", [{50706: b"\x01\x04\x00\x00"}, {254: 1}], ids=["DNG", "a preview first"])
def test_a_raw_file_is_refused_rather_than_its_preview_restored(tags, tmp_path):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info.tagtype[tag] = 1 if isinstance(value, bytes) else 4
        info[tag] = value
    Image.new("RGB", (64, 48)).save(tmp_path / "raw.tif", tiffinfo=info)
    with pytest.raises(ImageError, match=r"raw\.tif: is a camera's raw file, .* export it as TIFF or JPEG"):
        read_picture(tmp_path / "raw.tif")


def test_what_metadata_promises_is_kept_or_not_promised(tmp_path):
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description GCamera:MotionPhoto="1" hdrgm:Version="1.0" dc:title="kept">'
        b"<Container:Directory><rdf:Seq/></Container:Directory></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    Image.new("RGB", (16, 16)).save(tmp_path / "phone.jpg", xmp=packet)
    picture = read_picture(tmp_path / "phone.jpg")
    assert picture.lost == ("video of a motion photo left out", "HDR gain map left out")
    assert b'MotionPhoto="0"' in picture.xmp
    assert b'dc:title="kept"' in picture.xmp
    assert b"hdrgm" not in picture.xmp
    assert b"Container" not in picture.xmp


def with_chunks(pixels, **chunks):
    """A PNG with chunks of its own after its header."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    content, more = file.getvalue(), b""
    for kind, data in chunks.items():
        named = kind.encode() + data
        more += struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))
    return content[:33] + more + content[33:]


def chromaticities(*places):
    return struct.pack(">8I", *(round(place * 100_000) for place in places))


def gamma(value):
    return struct.pack(">I", round(value * 100_000))


D65_AND_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
D65_AND_P3 = (0.3127, 0.3290, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3_OF_SRGB_RED = (234, 51, 35)  # what Display P3 calls sRGB's (255, 0, 0), from CSS Color 4's matrices


@pytest.mark.parametrize(
    ("chunks", "own", "seen"),
    [
        ({"gAMA": gamma(0.45455)}, (200, 100, 50), (200, 100, 50)),
        ({"gAMA": gamma(0.45455), "cHRM": chromaticities(*D65_AND_SRGB)}, (200, 100, 50), (200, 100, 50)),
        ({"gAMA": gamma(1.0), "sRGB": b"\0"}, (200, 100, 50), (200, 100, 50)),
        ({"gAMA": gamma(1.0)}, (55, 55, 55), (128, 128, 128)),  # sRGB's 128 is 0.2159 of linear light
        ({"gAMA": gamma(1.0), "cHRM": chromaticities(*D65_AND_SRGB)}, (255, 0, 0), (255, 0, 0)),
        ({"cHRM": chromaticities(*D65_AND_P3)}, P3_OF_SRGB_RED, (255, 0, 0)),
        ({"cICP": bytes((12, 13, 0, 1))}, P3_OF_SRGB_RED, (255, 0, 0)),
        ({"cICP": bytes((1, 13, 0, 1)), "gAMA": gamma(1.0)}, (200, 100, 50), (200, 100, 50)),
        ({"cICP": bytes((1, 8, 0, 1))}, (55, 55, 55), (128, 128, 128)),
    ],
)
def test_colours_of_a_png_mean_what_its_chunks_say_and_its_samples_stay(tmp_path, chunks, own, seen):
    pixels = np.full((16, 16, 3), own, np.uint8)
    (tmp_path / "own.png").write_bytes(with_chunks(pixels, **chunks))
    picture = read_picture(tmp_path / "own.png")
    assert picture.lost == ()
    assert np.array_equal(picture.pixels, pixels)
    assert abs(np.asarray(picture.image, int) - seen).max() <= 2
    face = torch.tensor(seen).view(3, 1, 1).expand(3, 8, 8) / 127.5 - 1
    back = (picture.from_srgb(face)[:, 0, 0] + 1) * 127.5
    assert abs(back.numpy() - own).max() <= 2.5
    write_picture(tmp_path / "back.png", picture.pixels, picture)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "back.png").image), np.asarray(picture.image))


def test_a_grey_png_has_its_gamma_too(tmp_path):
    (tmp_path / "own.png").write_bytes(with_chunks(np.full((16, 16), 55, np.uint8), gAMA=gamma(1.0)))
    picture = read_picture(tmp_path / "own.png")
    assert picture.pixels.shape == (16, 16, 1)
    assert abs(int(np.asarray(picture.image)[0, 0, 0]) - 128) <= 2


@pytest.mark.parametrize(
    "chunks",
    [{"cICP": bytes((9, 16, 0, 1))}, {"cHRM": bytes(32)}, {"cHRM": chromaticities(*[0.3] * 8), "gAMA": gamma(0.5)}],
)
def test_colours_of_a_png_that_cannot_be_followed_are_said(tmp_path, chunks):
    (tmp_path / "own.png").write_bytes(with_chunks(smooth(3), **chunks))
    picture = read_picture(tmp_path / "own.png")
    assert len(picture.lost) == 1
    assert np.array_equal(np.asarray(picture.image), picture.pixels)
