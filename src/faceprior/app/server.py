"""The server: the page, its HTTP interface and `/healthz` behind one guard."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceprior.app.options import ServeOptions
from faceprior.errors import FacePriorError, OptionError

if TYPE_CHECKING:
    from fastapi import Request, Response
    from starlette.types import ASGIApp

    from faceprior.app.studio import Studio

PAGE = Path(__file__).parent / "page"

# settings of Gradio's that it reads from the environment, some of them while it is imported
_SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def own_folder() -> Iterator[Path]:
    """Give Gradio a folder of its own for uploads and results, and delete it at the end."""
    with tempfile.TemporaryDirectory(prefix="faceprior-", ignore_cleanup_errors=True) as folder:
        before = {name: os.environ.get(name) for name in (*_SETTINGS, "GRADIO_TEMP_DIR")}
        os.environ.update(_SETTINGS, GRADIO_TEMP_DIR=folder)
        try:
            yield Path(folder).resolve()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def make_server(studio: Studio, options: ServeOptions, folder: Path) -> ASGIApp:
    """Put page, interface and guard together; within `own_folder`.

    Gradio brings the queue, the HTTP interface with its clients, and the password (its "server mode"); the page is
    plain HTML that calls the same interface.

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
        from fastapi.responses import HTMLResponse, JSONResponse
        from fastapi.staticfiles import StaticFiles
    except ImportError as error:
        raise FacePriorError(
            "serving the page needs Gradio: pip install 'faceprior[web]', or `make serve` in a checkout"
        ) from error
    from faceprior.app.api import Interface
    from faceprior.app.guard import Guard

    server = FastAPI(title="faceprior", docs_url=None, redoc_url=None, openapi_url=None)

    def page(request: Request) -> Response:
        text = (PAGE / "index.html").read_text(encoding="utf-8")
        if prefix := request.scope["root_path"]:  # then the address may lack the last slash
            text = text.replace("<head>", f'<head>\n<base href="{prefix}/">', 1)
        return HTMLResponse(text)

    server.add_route("/healthz", lambda _: JSONResponse({"status": "ok"}))
    server.add_route("/", page)
    server.mount("/page", StaticFiles(directory=PAGE))
    interface = Interface(studio, options, folder)
    with gr.Blocks(title="faceprior", analytics_enabled=False, mode="server") as blocks:
        interface.add_endpoints()
    blocks.queue(max_size=options.queue_limit, default_concurrency_limit=None, api_open=False)
    gr.mount_gradio_app(
        server,
        blocks,
        path="/",
        server_name=options.host,
        server_port=options.port,
        auth=options.auth,
        auth_message="This page asks for a user name and a password." if options.auth else None,
        show_error=False,
        max_file_size=options.max_upload_bytes,
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    return Guard(server, options, folder, interface.check_call)


def serve(studio: Studio, options: ServeOptions, on_ready: Callable[[], object]) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; nothing is left behind then.

    Args:
        studio: does the work.
        options: address and limits.
        on_ready: called when nothing stands in the way any more.

    Raises:
        FacePriorError: the extra "web" is not installed.
        OptionError: the port is taken, or the address is not this machine's.
    """
    with _ending_in_order(), own_folder() as folder, _emptied(folder, options.keep_minutes * 60):
        app = make_server(studio, options, folder)
        import uvicorn

        _check_port(options)
        on_ready()
        uvicorn.run(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=2,
        )


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let signals that end a process end it as Ctrl-C does, through every `finally`.

    uvicorn shuts down on SIGTERM and then raises it again for the handler that was there before, which by default
    kills; SIGHUP, that of a closed terminal, it does not know. A SIGHUP that is ignored (nohup) stays ignored.
    """

    def end(*_: Any) -> None:
        raise SystemExit(0)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        before[hang_up] = signal.signal(hang_up, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _emptied(folder: Path, seconds: float) -> Iterator[None]:
    """Delete files that are older than some seconds, again and again."""
    over = threading.Event()

    def sweep() -> None:
        while not over.wait(min(60.0, max(1.0, seconds / 10))):
            delete_older(folder, seconds)

    thread = threading.Thread(target=sweep, name="faceprior-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def delete_older(folder: Path, seconds: float) -> None:
    """Delete all files below a folder that were written more than so many seconds ago, and what is empty then."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what is inside a folder before the folder
        with suppress(OSError):  # gone meanwhile, or a folder that is not empty
            if time.time() - path.lstat().st_mtime > seconds:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


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
