"""The page: one column to set things, one to see what came out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from faceprior.app import pictures
from faceprior.app.api import add_endpoints
from faceprior.app.controls import ENLARGEMENTS, SCALES, STRIDES, default_preset
from faceprior.app.events import CONTROLS, OWN_TO_A_METHOD, SHOWN, Events
from faceprior.app.options import ServeOptions
from faceprior.app.studio import Studio
from faceprior.methods import DEFAULT_PRESET, all_methods, find_preset

RESTORING = "restore"
"""All that restores shares one place in the queue: one at a time."""

WARNING = (
    "**The detail in a restored face is invented.** It is what a network that has seen many faces finds plausible,"
    " not what was there. A restored face must not be used to identify anyone."
)

STYLE = """
.emerging label { display: block; font-weight: 600; }
.emerging progress { display: block; width: 100%; height: 1rem; margin: 0.5rem 0 1rem; accent-color: #2563eb; }
.emerging .faces { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.emerging .faces img { width: 8rem; height: 8rem; border-radius: 0.4rem; }
.note { font-weight: 600; }
table.numbers { border-collapse: collapse; width: 100%; }
table.numbers th, table.numbers td { border: 0; padding: 0.2rem 0.8rem 0.2rem 0; }
table.numbers th, table.numbers td { vertical-align: top; text-align: left; }
table.numbers th { font-weight: 600; white-space: nowrap; }
table.numbers td { overflow-wrap: anywhere; }
#restore, #stop { min-height: 3rem; }
#gallery .grid-wrap { height: auto; min-height: 0; max-height: none; }
"""

# The line itself can only be dragged; this one moves with the arrow keys.
_MOVE_LINE = "(percent) => ({__type__: 'update', slider_position: percent})"

# On a narrow screen the results lie below the controls.
_SHOW_PROGRESS = """() => {
  if (window.innerWidth < 768) document.querySelector("#progress").scrollIntoView({behavior: "smooth"});
}"""

_COPY = """(text) => {
  if (navigator.clipboard) { navigator.clipboard.writeText(text); return; }
  const area = document.createElement("textarea");  // no clipboard without https, except on this machine
  area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
}"""


def build(studio: Studio, options: ServeOptions) -> gr.Blocks:
    """Lay out the page and wire it up.

    Args:
        studio: does the work.
        options: the limits.
    """
    keep = options.keep_minutes * 60
    with gr.Blocks(
        title="faceprior: restore faces",
        analytics_enabled=False,
        delete_cache=(min(60, max(1, round(keep / 10))), max(1, round(keep))),  # seconds: how often, how old
    ) as page:
        add_endpoints(studio, options, RESTORING)  # first, so that their names are theirs
        _Page(studio, options)
    page.queue(max_size=options.queue_limit, default_concurrency_limit=None, api_open=False)
    return page


class _Page:
    def __init__(self, studio: Studio, options: ServeOptions) -> None:
        self._studio, self._options, self._events = studio, options, Events(studio, options)
        gr.Markdown(f"# Restore a face\n\n{WARNING}", elem_id="intro")
        self.path = gr.State(None)  # of the photo without boxes
        self.run = gr.State(None)
        self.files = gr.State([])
        self.sample = gr.State(0)
        with gr.Row():
            with gr.Column(min_width=320):
                self._make_inputs()
            with gr.Column(min_width=320):
                self._make_results()
        self._wire()

    def _make_inputs(self) -> None:
        self.photo = gr.Image(
            label="Photo: drop one, choose one, paste one or take one",
            type="filepath",
            image_mode=None,
            sources=["upload", "webcam", "clipboard"],
            height=340,
            buttons=["fullscreen"],
            alt_text="Your photo, with a numbered box around every face that was found",
            elem_id="photo",
        )
        self.faces = gr.CheckboxGroup(
            label="Faces to restore",
            info="Click a face in the photo, or tick it here.",
            visible=False,
            elem_id="faces",
        )
        self.found = gr.HTML(pictures.note(""), elem_id="found")
        with gr.Row():
            self.restore = gr.Button("Restore", variant="primary", elem_id="restore", scale=3)
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop", scale=1, min_width=80)
        self.detailed = gr.Slider(
            0,
            1,
            value=0,
            step=0.05,
            label="Faithful ↔ Detailed",
            info="0 keeps to the photo; 1 lets the prior draw more of the face, which may become someone else"
            " (DPI's τ and ω: where the condition is held, and how firmly).",
            elem_id="detailed",
        )
        self.strength = gr.Slider(
            0,
            1,
            value=1,
            step=0.05,
            label="Strength",
            info="Share of the restored face in the photo.",
            elem_id="strength",
        )
        with gr.Row():
            self.scale = gr.Radio(
                [("Auto" if scale == "auto" else f"×{scale}", scale) for scale in SCALES],
                value="auto",
                label="Scale",
                info="How much of the face is missing (R/n): more for a worse photo.",
                elem_id="scale",
            )
            self.enlarge = gr.Radio(
                [(f"×{factor}", factor) for factor in ENLARGEMENTS],
                value=ENLARGEMENTS[0],
                label="Enlarge the photo",
                info="A small photo has no room for detail otherwise.",
                elem_id="enlarge",
            )
        with gr.Row():
            self.samples = gr.Slider(
                1,
                self._options.max_samples,
                value=min(4, self._options.max_samples),
                step=1,
                label="Samples",
                info="Several tries, to choose from; where they disagree, nothing is known.",
                elem_id="samples",
            )
            self.seed = gr.Number(
                0, label="Seed", info="Another number, another try.", precision=0, minimum=0, elem_id="seed"
            )
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self._make_advanced()

    def _make_advanced(self) -> None:
        method = find_preset(DEFAULT_PRESET).method
        defaults = default_preset(method).as_dict()
        self.method = gr.Dropdown(
            [(f"{name}: {each.summary}", name) for name, each in all_methods()[0].items()],
            value=method,
            label="Method",
            info="dpi is ours; the others are there to compare. Some need hundreds of steps.",
            elem_id="method",
        )
        self.steps = gr.Number(
            defaults["steps"],
            label="Steps",
            info="How often the prior looks at the face.",
            precision=0,
            minimum=1,
            elem_id="steps",
        )
        with gr.Row():
            self.stride = gr.Radio(
                [*STRIDES],
                value=defaults["stride"],
                label="Stride (k)",
                info="Every k-th pixel is held to the photo.",
                elem_id="stride",
            )
            self.edge_exponent = gr.Slider(
                0,
                4,
                value=defaults["edge_exponent"],
                step=0.1,
                label="Edge exponent (s)",
                info="RACM: the higher, the fewer edges are held. Acts where Detailed is above 0.",
                elem_id="edge-exponent",
            )
        self.eta = gr.Slider(
            0, 1, value=defaults["eta"], step=0.05, label="Fresh noise (η)", info="0 is DDIM.", elem_id="eta"
        )
        self.corrector = gr.Checkbox(
            value=True,
            label="Corrector (CRT)",
            info="A small network that mends the photo between the steps.",
            interactive=self._studio.corrector_stride() is not None,
            elem_id="corrector",
        )
        self.prior = gr.Dropdown(
            self._studio.priors,
            value=self._studio.priors[0],
            label="Prior",
            info="The network that knows faces.",
            visible=len(self._studio.priors) > 1,
            elem_id="prior",
        )

    def _make_results(self) -> None:
        self.progress = gr.HTML(pictures.note("The restored photo will appear here."), elem_id="progress")
        with gr.Column(visible=False, elem_id="results") as self.results:
            self.view = gr.Radio([], label="Look at", elem_id="view")
            self.slider = gr.ImageSlider(
                label="Before and after: drag the line",
                interactive=False,
                buttons=["fullscreen"],
                max_height=560,
                elem_id="slider",
            )
            self.line = gr.Slider(
                0,
                100,
                value=50,
                step=5,
                label="Line between before and after, in percent",
                buttons=[],
                elem_id="line",
            )
            self.download = gr.DownloadButton("Download", variant="secondary", elem_id="download")
            self.gallery = gr.Gallery(
                label="Samples: choose one",
                columns=4,
                allow_preview=False,
                object_fit="contain",
                buttons=[],
                elem_id="gallery",
            )
            self.agreement = gr.Markdown(elem_id="agreement")
            self.spread = gr.Image(
                label="Not known from the photo: where the samples disagree",
                interactive=False,
                format="png",
                height=220,
                buttons=["fullscreen"],
                alt_text="Map of the disagreement of the samples; bright is not known from the photo",
                elem_id="spread",
            )
            with gr.Accordion("How this was made", open=True):
                self.command = gr.Textbox(label="Command line", lines=2, interactive=False, elem_id="command")
                self.copy = gr.Button("Copy command line", size="sm", elem_id="copy")
                self.numbers = gr.HTML(elem_id="numbers")
                self.all_files = gr.File(label="All files of this run", file_count="multiple", interactive=False)

    def _wire(self) -> None:
        on = self._events
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        looked_at = [self.path, self.photo, self.faces, self.enlarge, self.found]
        choice = [self.method, self.detailed, self.corrector, self.prior]
        own = [getattr(self, name) for name in OWN_TO_A_METHOD]
        # when the page opens
        gr.on(None, on.open_example, None, looked_at, **quiet)
        gr.on(None, on.grey_out, choice, own, **quiet)
        self.photo.input(on.take, [self.photo], looked_at, **quiet)
        self.photo.select(on.click, [self.path, self.faces], [self.faces, self.photo], **quiet)
        self.faces.input(on.tick, [self.path, self.faces], [self.photo], **quiet)
        self.method.input(on.choose_method, choice, own, **quiet)
        for control in (self.detailed, self.corrector, self.prior):
            control.input(on.grey_out, choice, own, **quiet)

        self.restore.click(None, None, None, js=_SHOW_PROGRESS, api_visibility="private")
        running = self.restore.click(
            on.restore,
            [self.path, self.faces, *(getattr(self, name) for name in CONTROLS)],
            [self.progress, self.run, self.files, self.sample, *(getattr(self, name) for name in SHOWN)],
            concurrency_limit=1,
            concurrency_id=RESTORING,
            **quiet,
        )
        self.stop.click(on.stop, None, [self.progress], cancels=[running], queue=False, **quiet)
        self.view.input(on.look_at, [self.run, self.view, self.sample], [self.slider], **quiet)
        self.gallery.select(
            on.choose_sample,
            [self.run, self.files, self.view],
            [self.sample, self.slider, self.agreement, self.download],
            **quiet,
        )
        self.line.input(None, [self.line], [self.slider], js=_MOVE_LINE, api_visibility="private")
        self.copy.click(None, [self.command], None, js=_COPY, api_visibility="private")
