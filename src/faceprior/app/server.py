"""The server: the page, its HTTP interface and `/healthz` behind one guard."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from faceprior.app.options import ServeOptions
from faceprior.errors import FacePriorError, OptionError

if TYPE_CHECKING:
    import gradio as gr
    from starlette.types import ASGIApp

    from faceprior.app.studio import Studio

# settings of Gradio's that it reads from the environment, some of them while it is imported
_SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def own_folder() -> Iterator[Path]:
    """Give Gradio a folder of its own for uploads and results, and delete it at the end."""
    with tempfile.TemporaryDirectory(prefix="faceprior-") as folder:
        before = {name: os.environ.get(name) for name in (*_SETTINGS, "GRADIO_TEMP_DIR")}
        os.environ.update(_SETTINGS, GRADIO_TEMP_DIR=folder)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def make_server(studio: Studio, options: ServeOptions, folder: Path) -> ASGIApp:
    """Put page, interface and guard together; within `own_folder`.

    Args:
        studio: does the work.
        options: address and limits.
        folder: what `own_folder` gave.

    Raises:
        FacePriorError: the extra "web" is not installed.
    """
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError as error:
        raise FacePriorError(
            "serving the page needs Gradio: pip install 'faceprior[web]', or `make serve` in a checkout"
        ) from error
    from faceprior.app.guard import Guard
    from faceprior.app.page import STYLE, build

    server = FastAPI(title="faceprior", docs_url=None, redoc_url=None, openapi_url=None)

    @server.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    gr.mount_gradio_app(
        server,
        build(studio, options),
        path="/",
        server_name=options.host,
        server_port=options.port,
        auth=options.auth,
        auth_message="This page asks for a user name and a password." if options.auth else None,
        show_error=False,
        max_file_size=options.max_upload_bytes,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        css=STYLE,
        theme=_theme(),
    )
    return Guard(server, options, folder)


def _theme() -> gr.Theme:
    """Fonts of the visitor's own machine, and words that are dark enough to read."""
    import gradio as gr

    theme = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
    )


def serve(studio: Studio, options: ServeOptions) -> None:
    """Serve until Ctrl-C.

    Raises:
        FacePriorError: the extra "web" is not installed.
        OptionError: the port is taken, or the address is not this machine's.
    """
    with own_folder() as folder:
        app = make_server(studio, options, folder)
        import uvicorn

        _check_port(options)
        uvicorn.run(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=2,
        )


def _check_port(options: ServeOptions) -> None:
    import socket

    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn does
            probe.bind((options.host, options.port))
    except OSError as error:
        raise OptionError(
            f"{options.host}:{options.port} cannot be bound to ({error.strerror}); choose another --port or --host"
        ) from error
