"""What the server does for programs, the page among them: endpoints of Gradio's HTTP interface."""

from __future__ import annotations

import difflib
import inspect
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr
from gradio.events import api

from faceprior.app import pictures, words
from faceprior.app.controls import STRIDES, Controls, acting_controls
from faceprior.app.guard import check_picture, is_upload
from faceprior.app.memory import give_back_memory
from faceprior.app.options import ServeOptions
from faceprior.app.studio import Progress, Run, Studio
from faceprior.errors import FacePriorError, ImageError, OptionError
from faceprior.images import Picture, read_picture
from faceprior.images.metadata import has_location
from faceprior.methods import DEFAULT_PRESET, all_methods, find_preset
from faceprior.photographs import Composed, Prepared

_LOOKS = ("faithful", DEFAULT_PRESET, "detailed")
_RESTORING, _LOOKING = "restore", "look"  # those who restore wait for one another, and those who look


class Interface:
    """The endpoints.

    Args:
        studio: does the work.
        options: the limits.
        folder: of uploads and results.
    """

    def __init__(self, studio: Studio, options: ServeOptions, folder: Path) -> None:
        self._studio, self._options, self._folder = studio, options, folder
        controls = get_type_hints(Controls)
        self._parameters: dict[str, dict[str, Any]] = {
            "find_faces": {"photo": gr.FileData, "previews": bool},
            "restore": {"photo": gr.FileData, "faces": list[int] | None, **controls, "previews": bool},
            "settings": {},
        }
        self._defaults: dict[str, Any] = {
            "faces": None,
            "previews": False,
            **{field.name: field.default for field in fields(Controls)},
        }

    def add_endpoints(self) -> None:
        """Add `/find_faces`, `/restore` and `/settings` to the Gradio app that is being built."""
        self._add(self._find_faces, "find_faces", dict[str, Any], _LOOKING)
        self._add(self._restore, "restore", tuple[list[gr.FileData], dict[str, Any]], _RESTORING)
        self._add(self._settings, "settings", dict[str, Any], None)

    def check_call(self, name: str, values: Mapping[str, Any]) -> None:
        """Check the named parameters of a call.

        Raises:
            LookupError: there is no such endpoint; the message names those that there are.
            OptionError: a parameter is unknown or has a value that it cannot have.
        """
        if name not in self._parameters:
            raise LookupError(f"there is no /{name} here; there are /find_faces, /restore")
        known = list(self._parameters[name])
        for given in values:
            if given not in known:
                close = difflib.get_close_matches(given, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
                raise OptionError(f"/{name} has no parameter {given}; {hint}")
        _ = _controls(values)

    def _find_faces(self, photo: dict[str, Any], previews: bool = False) -> dict[str, Any]:
        """Find the faces of an uploaded photograph, the largest first.

        Returns the size of the photograph, and of each face its number, box, resolution and whether it is left
        alone, and why; with `previews` also a picture of it for a screen.
        """
        with _request():
            path = self._uploaded(photo)
            picture = read_picture(path)
            with ThreadPoolExecutor(1) as beside:
                preview = (
                    beside.submit(pictures.write_preview, picture.image, self._new_folder()) if previews else None
                )
                found = _found(self._studio.look(path, Controls(), picture), picture)
            return {**found, "preview": str(preview.result())} if preview else found

    def _restore(
        self, photo: dict[str, Any], faces: list[int] | None, *values: Any
    ) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """Restore an uploaded photograph, or only the faces with the numbers that `find_faces` gives.

        Returns the files (each sample, and their mean) and what there is to say of them; while it works, no files
        and how far it is. With `previews` there are also pictures for a screen.
        """
        previews = values[-1]
        with _request():
            path = self._uploaded(photo)
            controls = _controls(dict(zip((field.name for field in fields(Controls)), values[:-1], strict=True)))
            for update in self._studio.restore(path, controls, faces):
                if isinstance(update, Progress):
                    emerging = [pictures.data_address(face) for face in update.emerging] if previews else []
                    shown = {"emerging": emerging} if previews else {}
                    yield [], {"done": update.done, "total": update.total, **shown}
                    continue
                paths, composed = update.write(self._new_folder())
                shown = self._views(update, paths, composed.record) if previews else {}
                files = [gr.FileData(path=str(path)).model_dump() for path in paths]
                yield files, {**_report(update, composed), **shown}

    def _settings(self) -> dict[str, Any]:
        """Return what can be chosen on this server: presets and methods, priors, and the limits."""
        methods, _ = all_methods()
        described = {name: method.summary for name, method in methods.items()}
        return {
            "presets": {
                name: {
                    "summary": described.get(name, ""),
                    "acting": sorted(acting_controls(name)),
                    "defaults": {
                        option: value
                        for option, value in find_preset(name).as_dict().items()
                        if option in ("steps", "stride", "edge_exponent", "eta")
                    },
                }
                for name in (*_LOOKS, *methods)
            },
            "strides": STRIDES,
            "priors": {name: self._studio.corrector_stride(name) for name in self._studio.priors},
            "max_samples": self._options.max_samples,
            "max_upload_mb": self._options.max_upload_mb,
        }

    def _views(self, run: Run, files: Sequence[Path], record: Mapping[str, Any]) -> dict[str, Any]:
        faces = [face["lr_consistency"] for face in record.get("faces", [record]) if "lr_consistency" in face]
        return {
            "views": pictures.write_views(run, files, self._new_folder()),
            "agreement": [words.agreement(min(values)) for values in zip(*faces, strict=True)],
            "doubt": words.doubt(run.doubt) if run.doubt is not None else None,
        }

    def _uploaded(self, photo: Any) -> Path:
        place = photo.get("path") if isinstance(photo, dict) else None
        if not isinstance(place, str) or not is_upload(Path(place), self._folder):
            raise ImageError("photo is not an upload of this server, or was deleted by now; upload it again")
        check_picture(Path(place), self._options.max_pixels)
        return Path(place)

    def _new_folder(self) -> Path:
        folder = self._folder / secrets.token_hex(16)
        folder.mkdir()
        return folder

    def _add(self, function: Any, name: str, returns: Any, group: str | None) -> None:
        """Add an endpoint, with the signature that Gradio reads: a name and a type for each parameter."""

        def endpoint(*values: Any) -> Any:
            return function(*values)

        def endpoint_in_steps(*values: Any) -> Iterator[Any]:
            yield from function(*values)

        described: Any = endpoint_in_steps if inspect.isgeneratorfunction(function) else endpoint
        parameters = self._parameters[name]
        described.__doc__ = function.__doc__
        described.__annotations__ = {**parameters, "return": returns}
        described.__signature__ = inspect.Signature(
            [
                inspect.Parameter(
                    parameter,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=self._defaults.get(parameter, inspect.Parameter.empty),
                    annotation=kind,
                )
                for parameter, kind in parameters.items()
            ],
            return_annotation=returns,
        )
        api(described, api_name=name, concurrency_limit=1 if group else None, concurrency_id=group)


def _controls(values: Mapping[str, Any]) -> Controls:
    return Controls.of({field.name: values[field.name] for field in fields(Controls) if field.name in values})


def _found(prepared: Prepared, picture: Picture) -> dict[str, Any]:
    return {
        "aligned": prepared.aligned,
        "size": prepared.size,
        "format": picture.format,
        "has_location": has_location(picture.exif, picture.xmp),
        "notes": prepared.notes,
        "faces": [
            {
                "number": number,
                "box": [round(value, 1) for value in face.found.box],
                "place": words.where(face, prepared.size[0]),
                "effective_side": round(face.effective_side, 1),
                "scale": round(face.scale, 3),
                "left_alone": face.left_alone,
            }
            for number, face in enumerate(prepared.faces, 1)
        ],
        "restorable": [condition.index + 1 for condition in prepared.conditions],
        "summary": words.found(prepared),
    }


def _report(run: Run, composed: Composed) -> dict[str, Any]:
    """The manifest's record, and what a run over HTTP has besides."""
    return {
        **composed.record,
        "method": run.options.preset.method,
        "options": run.options.preset.as_dict(),
        "seconds": round(run.seconds, 2),
        "command": run.command,
    }


@contextmanager
def _request() -> Iterator[None]:
    """Turn our own errors into messages for the visitor; all others stay in the server's log."""
    try:
        yield
    except FacePriorError as error:
        raise gr.Error(_message(error), duration=None, print_exception=False) from error
    finally:
        give_back_memory()


def _message(error: FacePriorError) -> str:
    """Return an error's text without the folder of the file that it names: nobody needs to know that."""
    head, colon, tail = str(error).partition(": ")
    return f"{Path(head).name}: {tail}" if colon and Path(head).is_absolute() else str(error)
