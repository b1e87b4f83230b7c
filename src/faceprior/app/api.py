"""The same for programs: two endpoints of Gradio's HTTP interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import gradio as gr

from faceprior.app.controls import Controls
from faceprior.app.events import errors_as_messages, new_folder
from faceprior.app.guard import check_picture
from faceprior.app.options import ServeOptions
from faceprior.app.studio import Progress, Studio
from faceprior.errors import ImageError, OptionError


def add_endpoints(studio: Studio, options: ServeOptions, concurrency_id: str) -> None:
    """Add `/find_faces` and `/restore` to the page that is being built.

    Args:
        studio: does the work.
        options: the limits.
        concurrency_id: place in the queue that all who restore share.
    """

    def find_faces(photo: dict[str, Any]) -> dict[str, Any]:
        with errors_as_messages():
            subject = studio.look(_uploaded(photo, options), Controls())
        return {
            "aligned": subject.aligned,
            "faces": [
                {
                    "number": number,
                    "box": [round(value, 1) for value in face.found.box],
                    "effective_side": round(face.effective_side, 1),
                    "scale": round(face.scale, 3),
                    "left_alone": face.left_alone,
                }
                for number, face in enumerate(subject.faces, 1)
            ],
        }

    def restore(photo: dict[str, Any], faces: list[int] | None, *values: Any) -> Iterator[tuple[Any, Any]]:
        with errors_as_messages():
            path = _uploaded(photo, options)
            names = [field.name for field in fields(Controls)]
            controls = _checked(dict(zip(names, values, strict=True)))
            for update in studio.restore(path, controls, None if faces is None else [face - 1 for face in faces]):
                if isinstance(update, Progress):
                    yield [], {"done": update.done, "total": update.total}
                else:
                    files = [gr.FileData(path=str(file)).model_dump() for file in studio.write(update, new_folder())]
                    yield files, update.report()

    _describe(
        find_faces,
        "Find the faces of an uploaded photograph, the largest first.",
        {"photo": gr.FileData},
        dict[str, Any],
    )
    parameters = {"photo": gr.FileData, "faces": list[int] | None, **get_type_hints(Controls)}
    defaults = {"faces": None, **{field.name: field.default for field in fields(Controls)}}
    _describe(
        restore,
        "Restore an uploaded photograph, or only the faces with the numbers that `find_faces` gives. Returns the"
        " files (each sample, and their mean) and the numbers of the run; while it works, no files and how far it"
        " is.",
        parameters,
        tuple[list[gr.FileData], dict[str, Any]],
        defaults,
    )
    from gradio.events import api

    api(find_faces, api_name="find_faces")
    api(restore, api_name="restore", concurrency_limit=1, concurrency_id=concurrency_id)


def _describe(
    function: Callable[..., Any],
    text: str,
    parameters: dict[str, Any],
    returns: Any,
    defaults: dict[str, Any] | None = None,
) -> None:
    """Give a function the signature that Gradio reads: a name and a type for each control of the page."""
    described: Any = function
    described.__doc__ = text
    described.__annotations__ = {**parameters, "return": returns}
    described.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=(defaults or {}).get(name, inspect.Parameter.empty),
                annotation=kind,
            )
            for name, kind in parameters.items()
        ],
        return_annotation=returns,
    )


def _uploaded(photo: Any, options: ServeOptions) -> Path:
    """Return the path of an upload; that it is one, the guard has seen to."""
    place = photo.get("path") if isinstance(photo, dict) else None
    if not isinstance(place, str):
        raise ImageError("photo is not an upload of this server; upload the photograph first")
    check_picture(Path(place), options.max_pixels)
    return Path(place)


def _checked(values: dict[str, Any]) -> Controls:
    """Make controls of JSON, which may write 1.0 for 1 but must not write "1"."""
    typed = dict(values)
    for name, kind in get_type_hints(Controls).items():
        value, kinds = values[name], get_args(kind) or (kind,)
        if int in kinds and isinstance(value, float) and value.is_integer():
            typed[name] = int(value)
        elif float in kinds and type(value) is int:
            typed[name] = float(value)
        if type(typed[name]) not in kinds:
            wanted = " or ".join("nothing" if each is NoneType else _NAMES[each] for each in kinds)
            raise OptionError(f"{name} is {value!r}; it must be {wanted}")
    return Controls(**typed)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
