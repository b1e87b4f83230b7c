"""Clips for the tests: pictures at chosen times, with a tone beside them if wanted."""

from fractions import Fraction

import av
import numpy as np

BASE = Fraction(1, 12800)
REGULAR = 512  # 25 frames a second


def write_clip(path, pictures, steps=None, *, sound=False, rotation=0, codec="libx264", crf=1):
    """Write pictures (H, W, 3) uint8; `steps` are their durations in units of BASE."""
    steps = steps or [REGULAR] * len(pictures)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p"
        if codec == "libx264":
            video.options = {"crf": str(crf)}
            video.codec_context.time_base = BASE
        if rotation:
            video.set_display_rotation(rotation)
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        container.metadata["title"] = "a clip"
        pts = 0
        for picture, step in zip(pictures, steps, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if codec == "libx264":
                frame.pts, frame.time_base, frame.duration = pts, BASE, step
            container.mux(video.encode(frame))
            pts += step
        container.mux(video.encode())
        if audio is not None:
            count = 1024
            for number in range(int(pts * BASE * 16000 / count)):
                wave = np.sin(np.arange(number * count, (number + 1) * count) * 0.2).astype(np.float32)
                tone = av.AudioFrame.from_ndarray(wave[None] * 0.3, format="fltp", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 16000, number * count, Fraction(1, 16000)
                container.mux(audio.encode(tone))
            container.mux(audio.encode())
    return path


def timing(path):
    """Time and duration of every frame, in seconds."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        packets = sorted((p.pts, p.duration) for p in container.demux(video) if p.pts is not None)
        return [(pts * video.time_base, duration * video.time_base) for pts, duration in packets]


def shown(path):
    """Time of every frame, and the clip's end, in seconds: a packet's duration goes by the encoder's own order."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        return [*(time for time, _ in timing(path)), video.duration * video.time_base]


def sound_of(path):
    """Time, duration and bytes of every packet of sound."""
    with av.open(str(path)) as container:
        audio = container.streams.audio[0]
        packets = [p for p in container.demux(audio) if p.pts is not None]
        return [(p.pts * p.time_base, p.duration * p.time_base, bytes(p)) for p in packets]
