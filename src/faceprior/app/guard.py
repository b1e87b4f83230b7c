"""What stands between the network and Gradio: known doors alone, limits on what comes in, one visitor's files apart.

Gradio checks some of it later, and some not at all: it takes uploads of any kind, fetches pictures from addresses
that a request names, passes files of other sites on, and mounted in another server it reads any file that a request
names.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from faceprior.app.options import ServeOptions
from faceprior.errors import FacePriorError, ImageError, OptionError
from faceprior.images.limits import check_size, opened

MAX_CALL_BYTES = 1_000_000
"""Largest request that is not an upload."""

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self';"
    " frame-ancestors 'self'"
)

_UPLOAD = "/gradio_api/upload"
_FILE = "/gradio_api/file="
_CALL = re.compile(r"/gradio_api/call/(?:v2/)?([^/]+)")
_DOORS = re.compile(
    r"/(?:healthz|page/[\w.]+|config|login|logout"
    r"|gradio_api/(?:info|upload|app_id|startup-events|cancel|reset|queue/(?:join|data)|heartbeat/\w+"
    r"|call/(?:v2/)?\w+(?:/\w+)?|file=.+))?/?"
)
_ENVELOPE = 64_000  # what a multipart form adds to its files
_PREFIX = re.compile(r"(?:/[\w.~-]+)+")
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole server.

    Args:
        app: what is guarded.
        options: the limits.
        folder: where uploads and results lie.
        check_call: is given the name and the named parameters of a call before it waits in the queue; raises
            LookupError where there is no such endpoint, and OptionError.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServeOptions,
        folder: Path,
        check_call: Callable[[str, Mapping[str, Any]], object],
    ) -> None:
        self._app, self._options, self._folder, self._check_call = app, options, folder.resolve(), check_call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        try:
            prefix, path = self._place(scope)
            if not _DOORS.fullmatch(path) or (path.startswith(_FILE) and not self._may_be_fetched(path)):
                raise HTTPException(404, f"there is nothing at {path}")  # noqa: TRY301
            scope = {**scope, "root_path": prefix, "path": prefix + path}
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
            elif path.rstrip("/") == _UPLOAD:
                too_large = f"the file is larger than {self._options.max_upload_mb:g} MB; reduce the photograph first"
                limited = _limited(scope, receive, self._options.max_upload_bytes + _ENVELOPE, too_large)
                await _with_checked_answer(self._app, scope, limited, send, self._check_uploads)
            else:
                await self._app(scope, await self._checked_call(path, scope, receive), send)
        except ClientDisconnect:
            return
        except HTTPException as refused:
            answer = JSONResponse({"error": refused.detail, "detail": refused.detail}, refused.status_code)
            await answer(scope, receive, send)

    def _may_be_fetched(self, path: str) -> bool:
        try:
            place = Path(path.removeprefix(_FILE)).resolve()
            return place.is_relative_to(self._folder) and place.is_file()
        except (OSError, ValueError):  # a name that no file can have
            return False

    def _place(self, scope: Scope) -> tuple[str, str]:
        """Return where a proxy shows the server (it may leave that in the path, or take it away), and the rest."""
        forwarded = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
        prefix = forwarded if _PREFIX.fullmatch(forwarded) else self._options.root_path
        path = scope["path"]
        inside = prefix and (path == prefix or path.startswith(f"{prefix}/"))
        return prefix, (path[len(prefix) :] or "/") if inside else path

    async def _checked_call(self, path: str, scope: Scope, receive: Receive) -> Receive:
        """Read a call as a whole and refuse what it cannot ask for; returns what hands it on."""
        too_large = "the request is too large; upload the photograph first"
        body = await Request(scope, _limited(scope, receive, MAX_CALL_BYTES, too_large)).body()
        try:
            values = json.loads(body)
        except ValueError:  # a login form, or nonsense that the server answers itself
            values = None
        if not all(self._may_be_read(*place) for place in _file_places(values)):
            raise HTTPException(400, "the photograph is not an upload of this server; upload it first")
        if called := _CALL.fullmatch(path):
            named = values if "/call/v2/" in path and isinstance(values, dict) else {}
            try:
                self._check_call(called[1], named)
            except LookupError as error:
                raise HTTPException(404, str(error.args[0])) from error
            except OptionError as error:
                raise HTTPException(422, str(error)) from error
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        return again

    def _may_be_read(self, name: str, place: str) -> bool:
        if name == "url":  # a browser sends the full address of an upload along, which Gradio does not follow
            return not place.strip().lower().startswith("data:")
        return is_upload(Path(place), self._folder)

    def _check_uploads(self, body: bytes) -> None:
        """Delete uploads again that are not pictures, or too large ones."""
        refused: list[FacePriorError] = []
        for path in map(Path, json.loads(body)):
            try:
                check_picture(path, self._options.max_pixels)
            except ImageError as error:
                path.unlink(missing_ok=True)
                refused.append(error)
        if refused:
            raise HTTPException(415, str(refused[0])) from refused[0]


def is_upload(path: Path, folder: Path) -> bool:
    """Whether a path is what only its visitor was told: a regular file that was uploaded to `folder`.

    Gradio puts an upload into a folder that is named by a keyed hash of its content, so nobody guesses another's.

    Args:
        path: what a request names.
        folder: of all uploads, resolved.
    """
    try:
        # spelled as it was given out: no link, no "..", not the folder of an upload
        return (
            path.parent.parent == folder
            and path.resolve() == path
            and len(path.parent.name) == 64
            and stat.S_ISREG(path.lstat().st_mode)
        )
    except (OSError, ValueError):  # a name that no file has, or can have
        return False


def check_picture(path: Path, max_pixels: int) -> None:
    """Look at the beginning of a file: is it a picture, and not too large?

    Raises:
        ImageError: it is not; the message names the file without its folder.
    """
    name = path.name
    with opened(path, name) as image:
        width, height = image.size
        check_size(name, width, height)
        if width * height > max_pixels:
            raise ImageError(
                f"{name}: {width}×{height} is more than the {max_pixels / 1e6:g} megapixels that this server takes;"
                " reduce the photograph first"
            )


def _limited(scope: Scope, receive: Receive, limit: int, reason: str) -> Receive:
    """Refuse a body that is larger than its limit, by its header or, whatever that said, once it is."""
    length, total = Headers(scope=scope).get("content-length", "0"), 0
    if length.isdigit() and int(length) > limit:
        raise HTTPException(413, reason)

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            raise HTTPException(413, reason)
        return message

    return limited


def _file_places(values: Any) -> Iterable[tuple[str, str]]:
    """All that says where a file lies: "path" and "url" of Gradio's FileData, however deep."""
    if isinstance(values, dict):
        for name, value in values.items():
            if name in ("path", "url") and isinstance(value, str):
                yield name, value
            else:
                yield from _file_places(value)
    elif isinstance(values, list):
        for value in values:
            yield from _file_places(value)


async def _with_checked_answer(app: ASGIApp, scope: Scope, receive: Receive, send: Send, check: Any) -> None:
    """Hold an answer back until its body is checked."""
    held: list[Message] = []

    async def hold(message: Message) -> None:
        held.append(message)

    await app(scope, receive, hold)
    if held and held[0].get("status") == 200:
        await run_in_threadpool(check, b"".join(message.get("body", b"") for message in held))
    for message in held:
        await send(message)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending
