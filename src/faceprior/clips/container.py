"""Video in and out, through PyAV: frames are seen one at a time, as upright 8-bit RGB.

A clip is rewritten, never cut: every frame keeps its presentation time, sound and subtitles are copied packet by
packet, and the new file is seen only once it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from faceprior.errors import FacePriorError, OutputError, VideoError
from faceprior.images import MAX_PIXELS, METADATA_KEY, replaced
from faceprior.images.metadata import parsed_metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLIP_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".dv", ".mpg", ".mpeg", ".m2v"}
    | {".vob", ".ts", ".m2t", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".mxf"}
)
"""Endings of files that are taken for clips."""

QUALITY = 18
"""x264's constant rate factor of a rewritten clip: 18 is hardly told from the original by eye."""

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # that hold H.264

OUTPUT_SUFFIXES = frozenset(_FORMATS)
"""Endings of files that clips are written to."""

_OTHERWISE = ".mkv"  # holds any sound that another container brought along
_COPIED = ("audio", "subtitle")
_NOTED_GAP = 0.5  # seconds without a picture at the end that are worth a word
_UNSPECIFIED = 2  # ITU-T H.273: the file does not say


@dataclass(frozen=True)
class Frame:
    """One frame of a clip."""

    index: int  # 0 for the first
    time: float  # when it is shown, in seconds
    pixels: NDArray[np.uint8]  # upright RGB, (H, W, 3)


def is_clip(path: str | Path) -> bool:
    """Whether a file is taken for a clip, by its suffix."""
    return Path(path).suffix.lower() in CLIP_SUFFIXES


def output_suffix(path: str | Path, wanted: str | None = None) -> str:
    """Suffix of the rewritten clip: the wanted or the input's own, whichever container holds H.264, else ".mkv"."""
    if wanted is not None and wanted.lower() in _FORMATS:
        return wanted
    suffix = Path(path).suffix.lower()
    return suffix if suffix in _FORMATS else _OTHERWISE


def frame_count(path: str | Path) -> int:
    """About how many frames a clip has, for a progress bar; 0 if the file does not say.

    Raises:
        VideoError: as `read_frames`.
    """
    with _opened(Path(path)) as source:
        return source.frames


def read_frames(path: str | Path) -> Iterator[Frame]:
    """Decode a clip from its beginning, one frame in memory at a time.

    Raises:
        VideoError: the file is missing, no video, has no picture, or nothing of it can be decoded.
        FacePriorError: PyAV is not installed.
    """
    with _opened(Path(path)) as source:
        for item in source.items(copied=False):
            if isinstance(item, _Decoded):
                yield item.frame


def rewrite(
    path: str | Path,
    output: str | Path,
    change: Callable[[Frame], NDArray[np.uint8]],
    metadata: dict[str, Any] | None = None,
    *,
    with_location: bool = True,
) -> tuple[str, ...]:
    """Write a clip anew with every frame changed; all else of it is kept.

    Times of frames, sound, subtitles, colour tags and the file's own tags stay. A rotation that the file asks its
    player for is applied to the frames. Video becomes 8-bit H.264.

    Args:
        path: the clip.
        output: where to; its suffix must be `output_suffix(path)`.
        change: the new frame, (H', W', 3) uint8, of one size for all.
        metadata: stored in the file as JSON under the key "faceprior".
        with_location: keep the tags that say where it was taken.

    Returns:
        What could not be kept, in words.

    Raises:
        VideoError: as `read_frames`.
        OutputError: the file cannot be written; nothing half-written is left behind.
    """
    path, output = Path(path), Path(output)
    with _opened(path) as source, _written(output) as partial:
        with closing(_Sink(partial, _FORMATS[output.suffix.lower()], source)) as sink:
            sink.tag(metadata, with_location=with_location)
            for item in source.items(copied=True):
                if isinstance(item, _Decoded):
                    sink.write(item, change(item.frame))
                else:
                    sink.copy(item)
            sink.finish()
        return (*source.notes, *sink.notes)


def read_clip_metadata(path: str | Path) -> dict[str, Any]:
    """Read back what `rewrite` stored.

    Raises:
        VideoError: the file is not a clip that faceprior wrote.
    """
    path = Path(path)
    with _opened(path) as source:
        tags = {key.lower(): text for key, text in source.container.metadata.items()}  # Matroska has capitals
    return parsed_metadata(tags.get(METADATA_KEY), path, VideoError)


def load_av() -> Any:
    """Import PyAV; raises FacePriorError if the extra "video" is not installed."""
    try:
        import av
    except ImportError as error:
        raise FacePriorError("video needs PyAV, which is not installed: pip install 'faceprior[video]'") from error
    return av


@dataclass(frozen=True)
class _Decoded:
    """A frame, and as FFmpeg has it."""

    frame: Frame
    picture: Any
    pts: int
    duration: int


class _Source:
    """A clip that is being read, and notes on what cannot be."""

    def __init__(self, path: Path, container: Any) -> None:
        self.path, self.container, self.notes = path, container, list[str]()
        self._deinterlacer: Any = None  # where there is something to do for it
        pictures = [stream for stream in container.streams.video if stream.codec_context and not _is_cover(stream)]
        if not pictures:
            raise VideoError(f"{path}: has no video in it, only {_kinds(container)}; name another file")
        self.video = pictures[0]
        if self.video.width * self.video.height > MAX_PIXELS:
            raise VideoError(f"{path}: {self.video.width}×{self.video.height} is more than a clip may have")
        self.video.thread_type = "AUTO"
        self.copied = [stream for stream in container.streams if stream.type in _COPIED]
        if left := [stream for stream in container.streams if stream not in (self.video, *self.copied)]:
            self.notes.append(f"left out: {', '.join(sorted({_kind(stream) for stream in left}))}")

    @property
    def frames(self) -> int:
        if self.video.frames:
            return int(self.video.frames)
        duration = self.container.duration  # in microseconds
        return round(duration / 1e6 * float(self.rate)) if duration else 0

    @property
    def rate(self) -> Fraction:
        return Fraction(self.video.average_rate or self.video.guessed_rate or 25)

    def items(self, *, copied: bool) -> Iterator[Any]:
        """Decoded frames and, if wanted, packets of the copied streams, as they stand in the file."""
        found, damaged, end = 0, 0, 0.0
        wanted = (self.video, *self.copied) if copied else (self.video,)
        for packet in self._packets(wanted):
            if packet.stream is not self.video:
                if packet.dts is not None:  # the last packet is empty
                    yield packet
                continue
            try:
                pictures = packet.decode()
            except load_av().error.FFmpegError:
                damaged += 1
                continue
            for picture in self._progressive(pictures):
                decoded = self._decoded(picture, found)
                found, end = found + 1, decoded.frame.time + float(decoded.duration * self.video.time_base)
                yield decoded
        for picture in self._progressive([None] if found else []):  # what the deinterlacer still holds
            yield self._decoded(picture, found)
            found += 1
        if not found:
            raise VideoError(f"{self.path}: not one frame can be decoded; the file is damaged: copy it again")
        length = (self.container.duration or 0) / 1e6
        if damaged or end < length - _NOTED_GAP:
            self.notes.append(f"damaged or cut short: {found} frames, up to {end:.1f} of {length:.1f} seconds")

    def _progressive(self, pictures: list[Any]) -> Iterator[Any]:
        """Whole pictures of interlaced ones, one for each frame; others as they are. None ends them."""
        if self._deinterlacer is None and pictures and pictures[0] is not None and pictures[0].interlaced_frame:
            self._deinterlacer = load_av().filter.Graph()
            self._deinterlacer.link_nodes(
                self._deinterlacer.add_buffer(template=self.video),
                self._deinterlacer.add("bwdif", "mode=send_frame:deint=interlaced"),
                self._deinterlacer.add("buffersink"),
            ).configure()
            self.notes.append("deinterlaced")
        for picture in pictures:
            if self._deinterlacer is None:
                if picture is not None:
                    yield picture
                continue
            self._deinterlacer.push(picture)
            while True:
                try:
                    whole = self._deinterlacer.pull()
                except (load_av().error.BlockingIOError, load_av().error.EOFError):
                    break
                if whole.pts is not None:  # the filter counts fields, two for each frame
                    whole.pts = round(whole.pts * whole.time_base / self.video.time_base)
                    whole.duration = round(whole.duration * whole.time_base / self.video.time_base)
                yield whole

    def _packets(self, streams: Any) -> Iterator[Any]:
        packets = self.container.demux(*streams)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except load_av().error.FFmpegError:  # the file ends in the middle of something
                packet = load_av().Packet()  # an empty one makes the decoder give out what it holds
                packet.stream = self.video
                yield packet
                return
            yield packet

    def _decoded(self, picture: Any, index: int) -> _Decoded:
        base = self.video.time_base
        steps = max(1, round(1 / (self.rate * base)))
        pts = picture.pts if picture.pts is not None else index * steps
        pixels = np.rot90(picture.to_ndarray(format="rgb24"), round(picture.rotation / 90))
        if index == 0 and picture.format.components[0].bits > 8:
            self.notes.append(f"{picture.format.components[0].bits}-bit colour reduced to 8 bits")
        frame = Frame(index, float(pts * base), np.ascontiguousarray(pixels))
        return _Decoded(frame, picture, pts, picture.duration or steps)


class _Sink:
    """A clip that is being written."""

    def __init__(self, path: Path, format_: str, source: _Source) -> None:
        av = load_av()
        self.notes, self._source = list[str](), source
        # the index goes to the front, as players on the web want it; tags of any name are kept
        flags = {} if format_ == "matroska" else {"movflags": "faststart+use_metadata_tags"}
        self.container = av.open(str(path), "w", format=format_, options=flags)
        self.video = self.container.add_stream(_encoder(), rate=source.rate)
        self._copies, self._durations = self._add_copies(), dict[int, int]()
        self._started, self._waiting, self._last = False, list[Any](), -(2**62)
        self._first_dts: int | None = None

    def tag(self, metadata: dict[str, Any] | None, *, with_location: bool) -> None:
        """Take over the file's own tags, and add how it was made."""
        tags = self._source.container.metadata
        # phones write location, location-eng or com.apple.quicktime.location.ISO6709
        kept = {name: text for name, text in tags.items() if with_location or "location" not in name.lower()}
        self.container.metadata.update(kept)
        if metadata is not None:
            self.container.metadata[METADATA_KEY] = json.dumps(metadata, sort_keys=True)

    def close(self) -> None:
        self.container.close()

    def _add_copies(self) -> dict[int, Any]:
        copies = {}
        for stream in self._source.copied:
            try:
                copy = self.container.add_stream_from_template(stream)
            except (ValueError, load_av().error.FFmpegError):  # this container does not hold it
                self.notes.append(f"left out: {_kind(stream)}")
                continue
            copy.metadata.update(stream.metadata)
            copies[stream.index] = copy
        return copies

    def copy(self, packet: Any) -> None:
        if (stream := self._copies.get(packet.stream.index)) is None:
            return
        packet.stream = stream
        if self._started:
            self.container.mux(packet)
        else:  # the file's header wants the size of the first frame
            self._waiting.append(packet)

    def write(self, item: _Decoded, pixels: NDArray[np.uint8]) -> None:
        if not self._started:
            self._start(item.picture, *pixels.shape[:2])
        picture = load_av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        matrix = item.picture.colorspace
        picture = picture.reformat(
            self.video.width,  # of a stream whose size changes, the first one
            self.video.height,
            format=self.video.pix_fmt,
            dst_colorspace=None if matrix == _UNSPECIFIED else matrix,
        )
        # two frames of one time, which damaged files have, cannot be written
        self._last = max(item.pts, self._last + 1)
        picture.pts, picture.time_base = self._last, self._source.video.time_base
        self._durations[self._last] = item.duration
        self._mux(self.video.encode(picture))

    def finish(self) -> None:
        if not self._started:
            return
        packets = self.video.encode()
        self._mux(packets[:-1])
        for packet in packets[-1:]:
            # an MP4 is as long as its durations in the order of decoding, which is the encoder's own
            first = packet.dts if self._first_dts is None else self._first_dts
            rest = (self._source.video.duration or 0) - (packet.dts - first)
            if rest > 0 and self.container.format.name != "matroska":
                self._durations[packet.pts] = rest
            self._mux([packet])

    def _start(self, picture: Any, height: int, width: int) -> None:
        video, context, source = self.video, self.video.codec_context, self._source.video
        video.height, video.width = height, width
        video.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"  # halved colour needs even sides
        video.options = {"crf": str(QUALITY)}
        video.time_base = context.time_base = source.time_base
        ratio = source.sample_aspect_ratio
        if ratio and ratio != 1:
            context.sample_aspect_ratio = 1 / ratio if round(picture.rotation / 90) % 2 else ratio
        context.colorspace, context.color_range = picture.colorspace, 1  # "MPEG", as reformat makes it
        context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
        self._started = True
        self.container.mux(self._waiting)
        self._waiting.clear()

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._first_dts = packet.dts if self._first_dts is None else self._first_dts
            self.container.mux(packet)


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    av = load_av()
    if path.is_dir():
        raise VideoError(f"{path}: is a folder; name the clips inside it, for example {path}/*.mp4")
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (FileNotFoundError, PermissionError) as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror}); check its name and permissions") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: is damaged, cut short or not a video; copy it again") from error
    with container:
        yield _Source(path, container)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """As `replaced`, with errors that name the file."""
    try:
        with replaced(path) as partial:
            yield partial
    except FacePriorError:
        raise
    except (OSError, load_av().error.FFmpegError) as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder with --output") from error


def _encoder() -> str:
    if "libx264" not in load_av().codecs_available:
        raise OutputError("this PyAV cannot write H.264 (no libx264); install its wheel: pip install av")
    return "libx264"


def _is_cover(stream: Any) -> bool:
    return "attached_pic" in str(stream.disposition)


def _kind(stream: Any) -> str:
    if stream.type == "video":
        return "cover picture" if _is_cover(stream) else "a second video"
    return str(stream.type or "data")


def _kinds(container: Any) -> str:
    return " and ".join(sorted({_kind(stream) for stream in container.streams})) or "nothing"
