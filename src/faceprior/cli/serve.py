"""The command that serves the page."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from typer import Option

from faceprior.app import ServeOptions, parse_auth
from faceprior.cli import options
from faceprior.cli.console import console, errors, say

_DEFAULT = ServeOptions()


def serve(
    host: Annotated[str, Option(help="Address to bind to; 0.0.0.0 lets the network in.")] = _DEFAULT.host,
    port: Annotated[int, Option(min=1, max=65535, help="Port.")] = _DEFAULT.port,
    root_path: Annotated[
        str, Option(help="Where a proxy shows the page, if not at its top.", metavar="/PREFIX")
    ] = _DEFAULT.root_path,
    auth: Annotated[
        str | None, Option(help="Ask visitors for these.", metavar="USER:PASSWORD", envvar="FACEPRIOR_AUTH")
    ] = None,
    prior: Annotated[
        list[str] | None,
        Option(
            "--prior",
            help="Embedded name, diffusers folder, ADM checkpoint file or hub id; repeat to offer several.",
            show_default="embedded",
        ),
    ] = None,
    corrector: options.Corrector = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    max_upload: Annotated[float, Option(help="Largest upload.", metavar="MB")] = _DEFAULT.max_upload_mb,
    max_pixels: Annotated[float, Option(help="Largest photograph.", metavar="MEGAPIXELS")] = _DEFAULT.max_megapixels,
    max_samples: Annotated[int, Option(min=1, help="Most samples of one request.")] = _DEFAULT.max_samples,
    time_limit: Annotated[float, Option(help="Longest restoration.", metavar="SECONDS")] = _DEFAULT.time_limit,
    queue_limit: Annotated[int, Option(min=1, help="Most requests that wait.")] = _DEFAULT.queue_limit,
    keep: Annotated[
        float, Option(help="Uploads and results are deleted after.", metavar="MINUTES")
    ] = _DEFAULT.keep_minutes,
) -> None:
    """Serve a page on which faces are restored, and the same over HTTP.

    Nobody but this machine reaches it unless --host says otherwise. Ctrl-C ends it.
    """
    from faceprior.errors import FacePriorError
    from faceprior.priors import DEFAULT_PRIOR

    chosen = ServeOptions(
        host=host,
        port=port,
        root_path=root_path.rstrip("/"),
        auth=parse_auth(auth) if auth else None,
        max_upload_mb=max_upload,
        max_megapixels=max_pixels,
        max_samples=max_samples,
        time_limit=time_limit,
        queue_limit=queue_limit,
        keep_minutes=keep,
    )
    try:
        from faceprior.app.server import serve as run
        from faceprior.app.studio import Studio
        from faceprior.faces import load_detector

        detector = load_detector()
    except ImportError as error:
        raise FacePriorError("the page needs the extra web: pip install 'faceprior[web]'") from error
    names = prior or [DEFAULT_PRIOR]
    pipelines = {name: options.load_pipeline(name, corrector, device, dtype) for name in names}
    if chosen.auth is None and not _is_private(host):
        say(errors, f"everyone who reaches {host}:{port} may use this page; --auth user:password asks for a password")
    address = f"http://{'localhost' if _is_private(host) else host}:{port}{chosen.root_path}"
    studio = Studio(pipelines, detector, chosen, DEFAULT_PRIOR)
    run(studio, chosen, lambda: say(console, f"{address}  (Ctrl-C ends it)"))


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
