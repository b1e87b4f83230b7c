"""A Hugging Face hub of a few files on this machine, for `hf_hub_download`."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves files by "owner/name/file"; `breaks_off` is after how many bytes the next answer ends."""

    def __init__(self):
        self.files, self.ranges, self.breaks_off = {}, [], None


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, *, body):
            repo, _, rest = self.path.lstrip("/").partition("/resolve/")
            content = hub.files.get(f"{repo}/{rest.partition('/')[2]}")
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            first = 0
            if body:
                asked = self.headers.get("Range")
                hub.ranges.append(asked)
                first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            self.send_response(206 if first else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if body:
                end, hub.breaks_off = hub.breaks_off, None
                self.wfile.write(content[first:end])
                self.close_connection = end is not None

        def log_message(self, *_):
            pass

    return Handler


def point_to(endpoint, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def serve(hub, monkeypatch, cache):
    """Let huggingface_hub ask this hub, and keep what it gets in `cache`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
