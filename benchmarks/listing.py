"""How long a run over millions of photographs takes to start, and how much memory: a listing made, and a run resumed.

    python benchmarks/listing.py --photographs 10000000 --folder /tmp/listing

The keys are made up, by a file system as s3fs is one; what a real store takes to tell them is not in it. Folders are
listed here one after the other; on a cluster its tasks do that, and the driver does the rest (docs/scale.md).
"""

import argparse
import json
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from faceprior.folders.inputs import Folder, expand, list_folder
from faceprior.scale.journal import Journal
from faceprior.scale.listing import read_listing, write_listing
from faceprior.storage import Url, as_url, place

PER_FOLDER = 1000
SETTINGS = {"made": "up"}
CHANGED = datetime(2026, 1, 1, tzinfo=timezone.utc)


class MadeUp(fsspec.AbstractFileSystem):
    """A bucket as s3fs tells it; every hundredth key has a twin of another format, whose results must not meet.

    Attributes:
        photographs: how many it holds.
    """

    protocol = "made-up"
    photographs = 0

    def ls(self, path: str, **_: Any) -> list[dict[str, Any]]:
        """Tell what is in a folder."""
        if path.endswith("photographs"):
            folders = range(-(-MadeUp.photographs // PER_FOLDER))
            return [{"name": f"{path}/{number:06d}", "size": 0, "type": "directory"} for number in folders]
        first = int(path.rpartition("/")[2]) * PER_FOLDER
        return [self._told(path, number) for number in range(first, min(first + PER_FOLDER, MadeUp.photographs))]

    def _told(self, path: str, number: int) -> dict[str, Any]:
        name = f"IMG_{number - 1:08d}.png" if number % 100 == 1 else f"IMG_{number:08d}.jpg"
        key, size = f"{path}/{name}", 3_000_000 + number
        about = {"Key": key, "LastModified": CHANGED, "ETag": '"made up"', "Size": size, "StorageClass": "STANDARD"}
        return {**about, "type": "file", "size": size, "name": key}


def write(folder: Url, photographs: int, parts: int) -> float:
    """List the made-up bucket and write the listing; return the CPU seconds that are a cluster's tasks'."""
    fsspec.register_implementation("made-up", MadeUp)
    MadeUp.photographs, output, cpu = photographs, place("made-up://bucket/out"), 0.0

    def lister(url: Url, below: str) -> Callable[[], Folder]:
        nonlocal cpu
        started = time.process_time()
        sent = pickle.dumps(list_folder(url, below))
        cpu += time.process_time() - started
        return partial(pickle.loads, sent)

    inputs = expand(place("made-up://bucket/photographs"), output, print, lister)
    write_listing(inputs, folder / "listing", output, [""], parts, SETTINGS)
    return cpu


def pretend(folder: Url) -> None:
    """Write the records of a run of which all parts but two are done, one of them half."""
    listing = read_listing(folder / "listing")
    for part in range(2, listing.parts):
        (folder / "records" / f"{part:05d}.jsonl").write(b"{}\n")
    journal, half = Journal(folder, SETTINGS), listing.read(0)
    for own in half[: len(half) // 2]:
        journal.finished(0, {"input": own.input, "status": "done"})
    journal.flush()


def resume(folder: Url) -> None:
    """Do what a resumed run does until its first photograph."""
    listing = read_listing(folder / "listing")
    journal = Journal(folder, SETTINGS)
    journal.tidy()
    left = [part for part in range(listing.parts) if part not in journal.done]
    photographs = listing.read(left[0])
    records, _ = journal.open(left[0], photographs)
    done = f"{len(records)} of {len(photographs)} done in the first"
    print(f"{listing.photographs} photographs, {len(left)} parts left, {done}")


def main() -> None:
    """Measure each step in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=10_000_000)
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--step", choices=("write", "pretend", "resume"))
    options = parser.parse_args()
    folder = as_url(options.folder)
    if options.step == "pretend":
        pretend(folder)
    elif options.step is not None:
        started, cpu, of_tasks = time.monotonic(), time.process_time(), 0.0
        if options.step == "write":
            of_tasks = write(folder, options.photographs, options.parts)
        else:
            resume(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cpu = time.process_time() - cpu - of_tasks
        figures = {"seconds": time.monotonic() - started, "cpu": cpu, "cpu_of_tasks": of_tasks, "peak_mib": peak}
        print(options.step, json.dumps({name: round(value, 1) for name, value in figures.items()}))
    else:
        for step in ("write", "pretend", "resume"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--step", step], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
