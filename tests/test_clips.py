import builtins

import numpy as np
import pytest

av = pytest.importorskip("av")

from faceprior.clips.container import frame_count, is_clip, output_suffix, read_clip_metadata, read_frames, rewrite  # noqa: E402
from faceprior.errors import FacePriorError, OutputError, VideoError  # noqa: E402
from synthetic_clips import REGULAR, sound_of, timing, write_clip  # noqa: E402

TAGS = {"movflags": "use_metadata_tags"}


def pictures(count=10, height=48, width=64):
    """A bright square that moves to the right, red in the top left corner."""
    frames = np.full((count, height, width, 3), 60, np.uint8)
    for index, frame in enumerate(frames):
        frame[: height // 4, : width // 4] = (220, 30, 30)
        frame[height // 2 : height // 2 + 8, 4 * index : 4 * index + 8] = (200, 220, 120)
    return frames


def unchanged(frame):
    return frame.pixels


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", pictures(), sound=True)


def test_a_clip_is_known_by_its_suffix():
    assert is_clip("a/B.MP4")
    assert not is_clip("a/b.png")
    assert output_suffix("b.MP4") == output_suffix("b.MP4", ".jpg") == ".mp4"
    assert output_suffix("b.mp4", ".MKV") == ".MKV"
    assert output_suffix("b.avi") == output_suffix("b.webm") == ".mkv"


def test_frames_come_in_order_upright_and_with_their_times(clip):
    frames = list(read_frames(clip))
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.time for frame in frames] == pytest.approx([index / 25 for index in range(10)])
    assert abs(frames[3].pixels.astype(int) - pictures()[3]).mean() < 3
    assert frame_count(clip) == 10


def test_a_rewritten_clip_keeps_sound_and_times_to_the_last_bit(clip, tmp_path):
    rewrite(clip, tmp_path / "out.mp4", unchanged)
    assert sound_of(tmp_path / "out.mp4") == sound_of(clip)
    assert len(sound_of(clip)) > 3
    assert timing(tmp_path / "out.mp4") == timing(clip)


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".avi"])
def test_other_containers_keep_sound_and_times_too(suffix, tmp_path):
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    source = write_clip(tmp_path / f"clip{suffix}", pictures(), sound=True, codec=codec)
    output = tmp_path / f"out{output_suffix(source)}"
    rewrite(source, output, unchanged)
    assert [data for *_, data in sound_of(output)] == [data for *_, data in sound_of(source)]
    found, wanted = [frame.time for frame in read_frames(output)], [frame.time for frame in read_frames(source)]
    assert found == pytest.approx(wanted, abs=1e-3)


def test_a_variable_frame_rate_stays_as_it_is(tmp_path):
    steps = [REGULAR, 3 * REGULAR, REGULAR // 2, 777, 1, REGULAR, 5 * REGULAR, 333, REGULAR, 4 * REGULAR]
    source = write_clip(tmp_path / "clip.mp4", pictures(), steps)
    rewrite(source, tmp_path / "out.mp4", unchanged)
    assert timing(tmp_path / "out.mp4") == timing(source)
    assert len({duration for _, duration in timing(source)}) > 4


@pytest.mark.skipif(not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="an older PyAV")
@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_rotated_clip_comes_out_upright(rotation, tmp_path):
    upright = pictures()
    stored = np.rot90(upright, -rotation // 90, axes=(1, 2))
    source = write_clip(tmp_path / "clip.mp4", stored, rotation=rotation)
    rewrite(source, tmp_path / "out.mp4", unchanged)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        assert abs(frame.to_ndarray(format="rgb24").astype(int) - upright[0]).mean() < 4


def test_frames_may_be_changed_and_enlarged(clip, tmp_path):
    rewrite(clip, tmp_path / "out.mp4", lambda frame: 255 - frame.pixels.repeat(2, 0).repeat(2, 1))
    frame = next(read_frames(tmp_path / "out.mp4"))
    assert frame.pixels.shape == (96, 128, 3)
    assert abs(frame.pixels[::2, ::2].astype(int) - (255 - pictures()[0].astype(int))).mean() < 4


def test_a_size_of_odd_numbers_is_kept(clip, tmp_path):
    rewrite(clip, tmp_path / "out.mp4", lambda frame: frame.pixels[:47, :63])
    assert next(read_frames(tmp_path / "out.mp4")).pixels.shape == (47, 63, 3)


def test_colours_of_a_tagged_clip_do_not_shift(tmp_path, monkeypatch):
    monkeypatch.setattr("faceprior.clips.container.QUALITY", 1)
    source = tmp_path / "hd.mp4"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt, video.options = 48, 64, "yuv420p", {"crf": "1"}
        video.codec_context.colorspace = 1  # BT.709
        frame = av.VideoFrame.from_ndarray(pictures()[0], "rgb24").reformat(format="yuv420p", dst_colorspace=1)
        container.mux(video.encode(frame))
        container.mux(video.encode())
    rewrite(source, tmp_path / "out.mp4", unchanged)
    before, after = (next(read_frames(path)).pixels.astype(int) for path in (source, tmp_path / "out.mp4"))
    assert abs(before - after)[:10, :14].max() <= 4
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.colorspace == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("tag", ["location", "com.apple.quicktime.location.ISO6709"])
def test_where_a_clip_was_taken_is_left_out_if_that_is_wanted(clip, tag, suffix, tmp_path):
    placed = tmp_path / f"placed{suffix}"
    with (
        av.open(str(clip)) as source,
        av.open(str(placed), "w", options=TAGS if suffix != ".mkv" else {}) as container,
    ):
        copy = container.add_stream_from_template(source.streams.video[0])
        container.metadata.update({tag: "+27.5916+086.5640/", "title": "a clip"})
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                container.mux(packet)
    for kept in (True, False):
        rewrite(placed, tmp_path / f"out{suffix}", unchanged, with_location=kept)
        assert (b"+27.5916" in (tmp_path / f"out{suffix}").read_bytes()) is kept
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert "a clip" in container.metadata.values()


def test_tags_are_kept_and_how_it_was_made_is_added(clip, tmp_path):
    rewrite(clip, tmp_path / "out.mp4", unchanged, metadata={"seed": 3})
    assert read_clip_metadata(tmp_path / "out.mp4") == {"seed": 3}
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.metadata["title"] == "a clip"
    rewrite(clip, tmp_path / "out.mkv", unchanged, metadata={"seed": 4})
    assert read_clip_metadata(tmp_path / "out.mkv") == {"seed": 4}
    with pytest.raises(VideoError, match="carries no faceprior metadata"):
        read_clip_metadata(clip)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a video"), (b"hello " * 100, "not a video"), (None, "check its name"), ("folder", "is a folder")],
)
def test_what_is_no_clip_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "clip.mp4"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=message) as caught:
        list(read_frames(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_clip_that_lost_its_end_is_refused(clip, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-2000])  # its index is gone
    with pytest.raises(VideoError, match="damaged, cut short"):
        rewrite(cut, tmp_path / "out.mp4", unchanged)
    assert not (tmp_path / "out.mp4").exists()


def test_what_is_left_of_a_damaged_clip_is_kept_and_the_damage_is_said(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    whole = write_clip(tmp_path / "whole.mkv", noise)
    content = bytearray(whole.read_bytes())
    content[len(content) // 2 :] = b""
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(content)
    notes = rewrite(cut, tmp_path / "out.mkv", unchanged)
    count = len(list(read_frames(tmp_path / "out.mkv")))
    assert 5 < count < 40
    assert any("cut short" in note and str(count) in note for note in notes)


def test_bytes_flipped_at_random_never_crash_nor_leave_half_a_file(clip, tmp_path):
    random = np.random.default_rng(5)
    content = np.frombuffer(clip.read_bytes(), np.uint8)
    for attempt in range(25):
        damaged = content.copy()
        places = random.integers(0, len(content), 20)
        damaged[places] = random.integers(0, 256, 20)
        path = tmp_path / f"{attempt}.mp4"
        path.write_bytes(damaged.tobytes())
        try:
            rewrite(path, tmp_path / "out.mp4", unchanged)
        except FacePriorError:
            assert not (tmp_path / "out.mp4").exists()
        else:
            (tmp_path / "out.mp4").unlink()
        path.unlink()
        assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_sound_without_pictures_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 16000
        container.mux(audio.encode(tone))
        container.mux(audio.encode())
    with pytest.raises(VideoError, match="no video in it, only audio"):
        list(read_frames(path))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_nothing_half_written_is_left_when_it_is_stopped(clip, tmp_path, error):
    def stop(frame):
        if frame.index == 5:
            raise error
        return frame.pixels

    (tmp_path / "out.mp4").write_bytes(b"older")
    with pytest.raises(error):
        rewrite(clip, tmp_path / "out.mp4", stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"older"


def test_a_folder_that_cannot_be_written_to_is_named(clip, tmp_path):
    with pytest.raises(OutputError, match=r"out\.mp4: cannot be written"):
        rewrite(clip, tmp_path / "missing" / "out.mp4", unchanged)


def test_without_the_extra_the_error_names_it(clip, monkeypatch):
    imported = builtins.__import__

    def without_av(name, *arguments, **keywords):
        if name == "av":
            raise ImportError(name)
        return imported(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(FacePriorError, match=r"faceprior\[video\]"):
        list(read_frames(clip))


# --- other containers

OTHERS = {
    ".mpg": ("mpeg2video", "mpeg", (64, 48)),
    ".vob": ("mpeg2video", "vob", (64, 48)),
    ".mts": ("libx264", "mpegts", (64, 48)),
    ".wmv": ("wmv2", "asf", (64, 48)),
    ".3gp": ("h263", "3gp", (176, 144)),
    ".flv": ("flv1", "flv", (64, 48)),
    ".avi": ("mpeg4", "avi", (64, 48)),
    ".webm": ("libvpx", "webm", (64, 48)),
}


def moving_square(index, width, height):
    """A white square that has moved 4 pixels by the next frame, 2 by the second field of an interlaced one."""
    picture = np.full((height, width, 3), 60, np.uint8)
    picture[8:40:2, 4 * index + 2 : 4 * index + 22] = 220
    picture[9:40:2, 4 * index + 4 : 4 * index + 24] = 220
    return picture


def write_as(path, codec, container_format, size, **options):
    width, height = size
    with av.open(str(path), "w", format=container_format) as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt, video.options = width, height, "yuv420p", options
        for index in range(8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(moving_square(index, width, height), "rgb24")))
        container.mux(video.encode())


@pytest.mark.parametrize("suffix", OTHERS)
def test_clips_of_other_containers_are_read_and_keep_their_times(suffix, tmp_path):
    source, output = tmp_path / f"clip{suffix}", tmp_path / "clip.mkv"
    write_as(source, *OTHERS[suffix])
    assert is_clip(source)
    assert output_suffix(source) == ".mkv"
    notes = rewrite(source, output, lambda frame: frame.pixels)
    before, after = ([frame.time for frame in read_frames(path)] for path in (source, output))
    assert len(before) == 8
    assert after == pytest.approx(before, abs=0.002)
    assert np.diff(before) == pytest.approx([0.04] * 7, abs=0.002)
    assert notes == ()


def test_interlaced_frames_become_whole_and_it_is_said(tmp_path):
    source, output = tmp_path / "clip.mpg", tmp_path / "clip.mkv"
    write_as(source, "mpeg2video", "mpeg", (96, 48), flags="+ilme+ildct")
    with av.open(str(source)) as container:
        combed = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    assert rewrite(source, output, lambda frame: frame.pixels) == ("deinterlaced",)
    frames = list(read_frames(source))
    assert np.diff([frame.time for frame in frames]) == pytest.approx([0.04] * 7, abs=0.002)
    assert [frame.time for frame in read_frames(output)] == pytest.approx([frame.time for frame in frames], abs=0.002)

    def comb(pixels):  # how much each row differs from the two beside it, which are of the other field
        rows = pixels[10:38].astype(int)
        return abs(2 * rows[1:-1] - rows[:-2] - rows[2:]).mean()

    assert comb(frames[4].pixels) < 0.3 * comb(combed[4])
