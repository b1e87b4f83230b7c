"""What an operator decides when the page is served."""

from __future__ import annotations

import re
from dataclasses import dataclass

from faceprior.errors import OptionError


@dataclass(frozen=True)
class ServeOptions:
    """Where the page is served, and what a visitor may ask for.

    Attributes:
        host: address to bind to; 127.0.0.1 is this machine alone.
        port: TCP port, 1 to 65535.
        root_path: where a proxy shows the server, for example "/faces"; empty at the top.
        auth: user and password that visitors must give; None lets everyone in who reaches the port.
        priors: names of the priors that visitors choose from, as `load_prior` takes them; the first is the default.
        max_upload_mb: largest upload, in millions of bytes.
        max_megapixels: largest photograph, in millions of pixels.
        max_samples: most samples of one request.
        time_limit: seconds that a restoration may take once it has begun.
        queue_limit: requests that wait at most; further ones are refused.
        keep_minutes: minutes until uploads and results are deleted.

    Raises:
        OptionError: a value is out of its range.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    root_path: str = ""
    auth: tuple[str, str] | None = None
    priors: tuple[str, ...] = ()
    max_upload_mb: float = 30.0
    max_megapixels: float = 50.0
    max_samples: int = 8
    time_limit: float = 300.0
    queue_limit: int = 32
    keep_minutes: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise OptionError(f"port is {self.port}; it must lie in 1 to 65535")
        if self.root_path and not re.fullmatch(r"(?:/[\w.~-]+)+", self.root_path):
            raise OptionError(f"root path is {self.root_path!r}; write it as /faces, with a slash only in front")
        for name in ("max_upload_mb", "max_megapixels", "max_samples", "time_limit", "queue_limit", "keep_minutes"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name.replace('_', ' ')} is {getattr(self, name)}; it must be above 0")

    @property
    def max_upload_bytes(self) -> int:
        """Largest upload, in bytes."""
        return int(self.max_upload_mb * 1_000_000)

    @property
    def max_pixels(self) -> int:
        """Largest photograph, in pixels."""
        return int(self.max_megapixels * 1_000_000)


def parse_auth(text: str) -> tuple[str, str]:
    """Read "user:password".

    Raises:
        OptionError: one of the two is missing. The message does not repeat the text.
    """
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise OptionError("--auth wants user:password, both of them not empty")
    return user, password
