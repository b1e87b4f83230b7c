"""Pictures for the screen: faces in boxes, and the emerging face."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from faceprior.app.studio import Progress, Subject

LONGEST_SIDE, SHORTEST_SIDE = 2048, 640
"""Longest sides of pictures on the page: larger ones are reduced, and smaller ones enlarged to be boxed."""

CLOSE_UP = 512  # side of a face on the page, in pixels

_CHOSEN, _LEFT = "#2563eb", "#6b7280"
_EMERGING = 192  # side of an emerging face, in pixels


def draw_faces(subject: Subject, chosen: Collection[int]) -> Image.Image:
    """Return the photograph with its faces in numbered boxes, the chosen ones blue and bold."""
    own = subject.picture.image
    factor = _factor(own.size, SHORTEST_SIDE)
    shown = own.resize(_size(own.size, factor), Image.Resampling.BICUBIC, reducing_gap=2.0)
    draw = ImageDraw.Draw(shown)
    width = max(2, round(max(shown.size) / 250))
    font = ImageFont.load_default(max(12, round(max(shown.size) / 32)))
    for index, face in enumerate(subject.faces):
        left, top, right, bottom = (value * factor for value in face.found.box)
        is_chosen = index in chosen
        colour = _CHOSEN if is_chosen else _LEFT
        draw.rectangle((left, top, right, bottom), outline="white", width=width + 2)
        draw.rectangle((left, top, right, bottom), outline=colour, width=width if is_chosen else max(1, width // 2))
        label = f" {index + 1} "
        draw.rectangle(draw.textbbox((left, top), label, font=font), fill=colour)
        draw.text((left, top), label, fill="white", font=font)
    return shown


def face_at(subject: Subject, x: float, y: float) -> int | None:
    """Return the number, from 0, of the face whose box holds a point of `draw_faces`; the smallest of several."""
    factor = _factor(subject.prepared.size, SHORTEST_SIDE)
    x, y = x / factor, y / factor
    hits = []
    for index, face in enumerate(subject.faces):
        left, top, right, bottom = face.found.box
        if left <= x <= right and top <= y <= bottom:
            hits.append(((right - left) * (bottom - top), index))
    return min(hits)[1] if hits else None


def face_names(subject: Subject) -> list[str]:
    """Name the faces of a photograph for someone who does not see the boxes."""
    width = subject.prepared.size[0]
    names = []
    for number, face in enumerate(subject.faces, 1):
        left, top, right, bottom = face.found.box
        middle = (left + right) / 2 / width
        place = "left" if middle < 0.35 else "right" if middle > 0.65 else "middle"
        size = round((right - left + bottom - top) / 2)
        why = f", left alone: {face.left_alone}" if face.left_alone is not None else ""
        names.append(f"Face {number} ({place}, {size} pixels{why})")
    return names


def reduced(image: Image.Image) -> Image.Image:
    """Return a picture small enough for the page."""
    size = _size(image.size, _factor(image.size))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _factor(size: tuple[int, int], shortest: int = 0) -> float:
    longest = max(size)
    return min(max(longest, shortest), LONGEST_SIDE) / longest


def _size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def enlarged(face: Image.Image) -> Image.Image:
    """Return a face, or several side by side, large enough to look at."""
    factor = max(1.0, CLOSE_UP / face.height)
    return face.resize(_size(face.size, factor), Image.Resampling.BICUBIC)


def side_by_side(faces: Sequence[Image.Image]) -> Image.Image:
    """Lay the faces of one sample next to each other."""
    canvas = Image.new("RGB", (sum(face.width for face in faces), max(face.height for face in faces)))
    left = 0
    for face in faces:
        canvas.paste(face, (left, 0))
        left += face.width
    return canvas


def write_for_screen(image: Image.Image, path: Path) -> str:
    """Write a picture that a browser loads quickly; returns the path."""
    image.save(path, format="WEBP", quality=92, method=2)
    return str(path)


def note(text: str, *, alert: bool = False) -> str:
    """Return a line of text as HTML that a screen reader speaks when it changes."""
    return f'<p class="note" role="{"alert" if alert else "status"}">{html.escape(text)}</p>'


def progress_bar(progress: Progress) -> str:
    """Return the bar with the emerging faces as HTML; nothing is written to a file for it."""
    percent = round(100 * progress.done / max(1, progress.total))
    faces = "".join(
        f'<img alt="Sample {number} as it looks now" src="{_data_address(image)}">'
        for number, image in enumerate(progress.emerging, 1)
    )
    return (
        f'<div class="emerging"><label>Restoring, {percent} %'
        f'<progress max="{progress.total}" value="{progress.done}">{percent} %</progress></label>'
        f'<div class="faces">{faces}</div></div>'
    )


def _data_address(image: Image.Image) -> str:
    file = io.BytesIO()
    image.resize((_EMERGING, _EMERGING), Image.Resampling.BICUBIC).save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return rows of a name and a value as an HTML table."""
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f'<table class="numbers"><tbody>{cells}</tbody></table>'
