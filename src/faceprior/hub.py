"""Downloads from the Hugging Face hub into its own cache, which serves without a network afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from faceprior.errors import WeightsError

_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = re.compile(rf"hf://(?P<repo>{_ID.pattern})@(?P<revision>[\w.-]+)/(?P<files>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTS = ["*.json", "*.safetensors", "*.bin"]  # of a model's folder: nothing that could run


class Address(NamedTuple):
    """Repository on the hub; branch, tag or commit, None for the newest; and files, none for a model's folder."""

    repo: str
    revision: str | None = None
    files: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Address | None:
        """Read "owner/name", "hf://owner/name@revision/file" or "…/{file,file}"; None if it is none of these."""
        if _ID.fullmatch(text):
            return cls(text)
        found = _FILES.fullmatch(text)
        return found and cls(found["repo"], found["revision"], tuple(found["files"].strip("{}").split(",")))


def download(address: Address, what: str, **hub: Any) -> Path:
    """Return the file, or the folder of several, in the cache; a download that broke off goes on where it stopped.

    A file that the cache has is not asked for again. Options are those of `huggingface_hub.hf_hub_download`:
    `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        WeightsError: the hub does not deliver it; the message says what is loaded.
    """
    from huggingface_hub import errors, snapshot_download

    hub = {**hub, "revision": hub.get("revision") or address.revision}
    try:
        if not address.files:
            return Path(snapshot_download(address.repo, allow_patterns=_PARTS, **hub))
        paths = [_download_file(address.repo, file, **hub) for file in address.files]
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined] # of the hub's own client
        reached = isinstance(error, errors.HfHubHTTPError) and not isinstance(error, errors.LocalEntryNotFoundError)
        raise WeightsError(
            f"{what}: is not on this machine, and the hub {'did not deliver it' if reached else 'cannot be reached'}"
            f" ({type(error.__cause__ or error).__name__}); check the name and the connection, or download"
            f" {', '.join(address.files) or 'the folder'} of {address.repo} elsewhere and name its path"
        ) from error
    return paths[0] if len(paths) == 1 else paths[0].parent


def _download_file(repo: str, file: str, *, force_download: bool = False, **hub: Any) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = hub.pop("local_files_only", False)
    try:
        if not force_download or offline:
            return Path(hf_hub_download(repo, file, local_files_only=True, **hub))
    except LocalEntryNotFoundError:
        if offline:
            raise
    # without a network this fails at once; a download would try for the better part of a minute, and say so
    get_hf_file_metadata(hf_hub_url(repo, file, revision=hub["revision"]), token=hub.get("token"))
    return Path(hf_hub_download(repo, file, force_download=force_download, **hub))


def check_download(path: Path, sha256: str) -> None:
    """Check the sha256 of a file in the hub's cache, where a large file is called by it; raises WeightsError."""
    stated = path.resolve().name
    if _SHA256.fullmatch(stated) and sha256 != stated:
        raise WeightsError(
            f"{path.resolve()}: is damaged: its sha256 is {sha256[:12]}…, the hub states {stated[:12]}…;"
            " delete it, and it is downloaded again"
        )
