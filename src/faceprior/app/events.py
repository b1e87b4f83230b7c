"""What happens on the page: every function answers an event, from the values of inputs to those of outputs."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from faceprior.app import pictures, words
from faceprior.app.controls import STRIDES, Controls, acting_controls, default_preset
from faceprior.app.guard import check_picture
from faceprior.app.options import ServeOptions
from faceprior.app.studio import Progress, Run, Studio, Subject
from faceprior.errors import FacePriorError, ImageError
from faceprior.images import to_pil
from faceprior.photographs.results import spread_picture

EXAMPLE = Path(__file__).parent / "example.webp"
"""Part of a NASA portrait of Eileen Collins (public domain), reduced in size."""

CONTROLS = (
    "detailed",
    "strength",
    "scale",
    "enlarge",
    "samples",
    "seed",
    "method",
    "steps",
    "stride",
    "edge_exponent",
    "eta",
    "corrector",
    "prior",
)
"""The controls of the page, by their names in `Controls`."""

OWN_TO_A_METHOD = ("detailed", "steps", "stride", "edge_exponent", "eta", "corrector", "seed", "samples")
"""Controls that not every method has."""

SHOWN = ("results", "view", "slider", "gallery", "agreement", "spread", "command", "numbers", "download", "all_files")
"""The parts of the page that show a result."""

_WHOLE = "Whole photo"
_SUGGESTED = ((400, 4), (1000, 2))  # longest side of a photo up to which so much enlargement is suggested


class Events:
    """Answers the events of the page.

    Args:
        studio: does the work.
        options: the limits.
    """

    def __init__(self, studio: Studio, options: ServeOptions) -> None:
        self._studio, self._options = studio, options
        self._boxed = f"faces-{secrets.token_hex(8)}.webp"  # of photographs with boxes, as the page shows them

    def open_example(self) -> tuple[Any, ...]:
        """The page opens: with the example on it."""
        return self._taken(str(EXAMPLE))

    def take(self, path: str | None) -> Iterator[tuple[Any, ...]]:
        """A photo came in, or went."""
        yield (*(gr.skip(),) * 4, pictures.note("Looking for faces …"))
        yield self._taken(path)

    def _taken(self, path: str | None) -> tuple[Any, ...]:
        no_faces = gr.update(choices=[], value=[], visible=False)
        # the first time that a picture is removed, Gradio sends the one that was there
        if path is None or Path(path).name == self._boxed:
            return None, None, no_faces, gr.skip(), pictures.note("There is no photo yet.")
        try:
            if path != str(EXAMPLE):
                check_picture(Path(path), self._options.max_pixels)
            subject = self._studio.look(Path(path), Controls())
        except FacePriorError as error:
            return None, None, no_faces, gr.skip(), pictures.note(message(error), alert=True)
        longest = max(subject.prepared.size)
        enlarge = next((factor for limit, factor in _SUGGESTED if longest <= limit), 1)
        names = pictures.face_names(subject)
        choices = [(names[index], index) for index in subject.restorable if not subject.aligned]
        chosen = [index for _, index in choices]
        return (
            path,
            self._boxes(subject, chosen),
            gr.update(choices=choices, value=chosen, visible=bool(choices)),
            gr.update(value=enlarge, visible=not subject.aligned),
            pictures.note(_what_was_found(subject)),
        )

    def click(self, path: str | None, chosen: list[int], event: gr.SelectData) -> tuple[Any, Any]:
        """A place in the photo was clicked: the face there is chosen, or no longer."""
        if path is None:
            return gr.skip(), gr.skip()
        with errors_as_messages():
            subject = self._studio.look(Path(path), Controls())
        hit = pictures.face_at(subject, *event.index)
        if hit is None or hit not in subject.restorable:
            return gr.skip(), gr.skip()
        chosen = sorted({*chosen} ^ {hit})
        return chosen, self._boxes(subject, chosen)

    def tick(self, path: str | None, chosen: list[int]) -> Any:
        """Faces were ticked in the list."""
        if path is None:
            return gr.skip()
        with errors_as_messages():
            return self._boxes(self._studio.look(Path(path), Controls()), chosen)

    def choose_method(self, method: str, detailed: float, corrector: bool, prior: str) -> list[Any]:
        """Another method: its own defaults, and the controls that it knows."""
        defaults = default_preset(method).as_dict()
        updates = self.grey_out(method, detailed, corrector, prior)
        for update, name in zip(updates, OWN_TO_A_METHOD, strict=True):
            if defaults.get(name) is not None:
                update["value"] = defaults[name]
        return updates

    def grey_out(self, method: str, detailed: float, corrector: bool, prior: str) -> list[Any]:
        """Leave only those controls live that change something."""
        acting = acting_controls(method, detailed)
        with_corrector = self._studio.corrector_stride(prior)
        if with_corrector is None:
            acting -= {"corrector"}
        updates = [gr.update(interactive=name in acting) for name in OWN_TO_A_METHOD]
        if "corrector" in acting and corrector:  # it works on a grid of its own stride, or a coarser one
            strides = [stride for stride in STRIDES if stride % (with_corrector or 1) == 0]
        else:
            strides = list(STRIDES)
        updates[OWN_TO_A_METHOD.index("stride")]["choices"] = [(str(stride), stride) for stride in strides]
        return updates

    def restore(self, path: str | None, chosen: list[int], *values: Any) -> Iterator[tuple[Any, ...]]:
        """Restore was pressed: the emerging face, then everything that came out."""
        unchanged = (gr.skip(),) * len(SHOWN)
        with errors_as_messages():
            if path is None:
                raise ImageError("there is no photo yet; drop one into the box")
            controls = Controls(**_typed(dict(zip(CONTROLS, values, strict=True))))
            yield (pictures.note("Looking at the photo …"), None, [], 0, gr.update(visible=False), *unchanged[1:])
            subject = self._studio.look(Path(path), controls)
            for update in self._studio.restore(Path(path), controls, None if subject.aligned else chosen):
                if isinstance(update, Progress):
                    yield (pictures.progress_bar(update), *(gr.skip(),) * 3, *unchanged)
                    continue
                yield (pictures.note("Writing the files …"), update, [], 0, *self._results(update))
                files = [str(file) for file in self._studio.write(update, new_folder())]
                done = pictures.note(f"Done in {update.seconds:.1f} seconds.")
                yield (
                    done,
                    gr.skip(),
                    files,
                    gr.skip(),
                    *unchanged[:-2],
                    gr.update(value=files[0], interactive=True),
                    files,
                )

    def stop(self) -> str:
        """Stop was pressed; the restoration itself ends because its generator is closed."""
        return pictures.note("Stopped.")

    def look_at(self, run: Run | None, view: str, sample: int) -> Any:
        """Another part of the photo is to be looked at."""
        with errors_as_messages():
            return gr.skip() if run is None else self._pair(run, view, sample)

    def choose_sample(self, run: Run | None, files: list[str], view: str, event: gr.SelectData) -> tuple[Any, ...]:
        """A sample was chosen."""
        if run is None or not files:
            return (gr.skip(),) * 4
        sample = int(event.index)
        with errors_as_messages():
            return sample, self._pair(run, view, sample), _sentences(run, sample), files[sample]

    def _boxes(self, subject: Subject, chosen: Collection[int]) -> str:
        return pictures.write_for_screen(pictures.draw_faces(subject, chosen), new_folder() / self._boxed)

    def _results(self, run: Run) -> tuple[Any, ...]:
        several = run.controls.samples > 1
        results = [result for _, result in run.restored]
        tiles = [
            (pictures.side_by_side([to_pil(result.images[sample]) for result in results]), f"Sample {sample + 1}")
            for sample in range(run.controls.samples)
        ]
        spread = pictures.side_by_side([spread_picture(result.spread).convert("RGB") for result in results])
        views = [_WHOLE, *(_face(number) for number, _ in run.restored)]
        return (
            gr.update(visible=True),
            gr.update(choices=views, value=_WHOLE, visible=not run.aligned),
            self._pair(run, _WHOLE, 0),
            gr.update(value=tiles if several else None, visible=several, selected_index=0 if several else None),
            _sentences(run, 0),
            gr.update(value=pictures.enlarged(spread) if several else None, visible=several),
            run.command,
            pictures.table(_numbers(run)),
            gr.update(interactive=False),
            None,
        )

    def _pair(self, run: Run, view: str, sample: int) -> tuple[str, str]:
        """The files of the two pictures that the slider compares."""
        if view == _WHOLE and not run.aligned:
            before, after = (pictures.reduced(image) for image in run.whole(sample))
        else:
            faces = [_face(number) for number, _ in run.restored]
            face = faces.index(view) if view in faces else 0
            before, after = (pictures.enlarged(image) for image in run.close_up(face, sample))
        folder = new_folder()
        return (
            pictures.write_for_screen(before, folder / "before.webp"),
            pictures.write_for_screen(after, folder / "after.webp"),
        )


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turn our own errors into messages for the visitor; all others stay in the server's log."""
    try:
        yield
    except FacePriorError as error:
        raise gr.Error(message(error), duration=None, print_exception=False) from error


def message(error: FacePriorError) -> str:
    """Return an error's text without the folder of the file that it names: nobody needs to know that."""
    head, colon, tail = str(error).partition(": ")
    return f"{Path(head).name}: {tail}" if colon and Path(head).is_absolute() else str(error)


def new_folder() -> Path:
    """Make an empty folder inside Gradio's own, from where files are served until they are too old."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return folder


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """An emptied number field stands for the method's default, or 0 for the seed."""
    whole = {
        name: int(values[name]) for name in ("samples", "steps", "stride", "enlarge") if values[name] is not None
    }
    return {**values, **whole, "seed": int(values["seed"] or 0)}


def _what_was_found(subject: Subject) -> str:
    if subject.aligned:
        return "The picture is a face; press Restore."
    if not subject.faces:
        return "No face was found. Try a photo in which a face is larger, or turned to the camera."
    count = f"{len(subject.faces)} faces were" if len(subject.faces) > 1 else "One face was"
    alone = len(subject.faces) - len(subject.restorable)
    return f"{count} found{f', {alone} of them left alone' if alone else ''}; press Restore."


def _sentences(run: Run, sample: int) -> str:
    return f"{words.agreement(run.agreement[sample])}\n\n{words.disagreement(run.mean_spread, run.controls.samples)}"


def _face(number: int) -> str:
    return f"Face {number}"


def _numbers(run: Run) -> list[tuple[str, str]]:
    report = run.report()
    rows = [("Time", f"{report['seconds']} s"), ("Method", report["method"]), ("Seed", str(report["seed"]))]
    rows += [
        (
            _face(face["number"]),
            (
                f"×{face['scale']:g}; agrees with the photo to"
                f" {', '.join(f'{value:.1f}' for value in face['lr_consistency'])} dB; spread {face['spread']:.4f}"
            ),
        )
        for face in report["faces"]
    ]
    rows.append(("Options", ", ".join(f"{name} {_shown(value)}" for name, value in report["options"].items())))
    return rows


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()
