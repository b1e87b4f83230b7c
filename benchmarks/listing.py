"""How long a run over millions of photographs takes to start, and how much memory: a listing made, and a run resumed.

    python -m benchmarks.listing --photographs 10000000 --folder /tmp/listing

The keys are made up, by a file system as s3fs is one. On a cluster its tasks list the folders, and the driver does
the rest (docs/scale.md): here both are done in one process and their CPU seconds told apart, or with `--ray` as
there, on this machine; `--latency` is what a store takes for each thousand keys.
"""

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import fsspec
import typer

from faceprior.folders.inputs import Folder, expand
from faceprior.scale.journal import Journal
from faceprior.scale.listing import Rows, list_rows, read_listing, write_listing
from faceprior.scale.run import ray_lister
from faceprior.storage import Url, as_url, place

PER_FOLDER = 1000
SETTINGS = {"made": "up"}
CHANGED = datetime(2026, 1, 1, tzinfo=timezone.utc)
ABOUT = {"LastModified": CHANGED, "ETag": '"made up"', "Size": 3_000_000, "StorageClass": "STANDARD"}
ABOUT |= {"type": "file", "size": 3_000_000}


class MadeUp(fsspec.AbstractFileSystem):
    """A bucket as s3fs tells it; every hundredth key has a twin of another format, whose results must not meet.

    Attributes:
        photographs: how many it holds.
        latency: seconds that it takes to answer.
    """

    protocol = "made-up"
    photographs = 0
    latency = 0.0

    def ls(self, path: str, **_: Any) -> list[dict[str, Any]]:
        """Tell what is in a folder."""
        if MadeUp.latency:
            time.sleep(MadeUp.latency)
        if path.endswith("photographs"):
            folders = range(-(-MadeUp.photographs // PER_FOLDER))
            return [{"name": f"{path}/{number:06d}", "size": 0, "type": "directory"} for number in folders]
        first = int(path.rpartition("/")[2]) * PER_FOLDER
        keys = [
            f"{path}/IMG_{number:08d}.jpg" for number in range(first, min(first + PER_FOLDER, MadeUp.photographs))
        ]
        keys[1::100] = [key.removesuffix("jpg") + "png" for key in keys[0::100]][: len(keys[1::100])]
        return [{**ABOUT, "Key": key, "name": key} for key in keys]


def make_up() -> None:
    """Have the bucket in this process, as the environment tells."""
    fsspec.register_implementation("made-up", MadeUp)
    MadeUp.photographs, MadeUp.latency = int(os.environ["PHOTOGRAPHS"]), float(os.environ["LATENCY"])


def write(folder: Url, parts: int, *, on_ray: bool) -> dict[str, float]:
    """List the made-up bucket and write the listing; return the CPU seconds of a cluster's tasks, and the store's."""
    output, cpu = place("made-up://bucket/out"), {"cpu_of_tasks": 0.0, "of_them_the_store": 0.0}

    def lister(url: Url, belows: Sequence[str]) -> Iterator[Folder[Rows]]:
        started = time.process_time()
        for below in belows:
            MadeUp().ls((url / below).text)
        told = time.process_time()
        sent = pickle.dumps(list_rows(url, belows, output, [""]))
        cpu["of_them_the_store"] += told - started
        cpu["cpu_of_tasks"] += time.process_time() - told
        yield from pickle.loads(sent)  # noqa: S301 - our own

    listers = ray_lister(output, [""]) if on_ray else lister
    inputs = expand(place("made-up://bucket/photographs"), output, print, listers)
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


def main(
    folder: Annotated[Path, typer.Option(help="For the listing and the records.")],
    photographs: Annotated[int, typer.Option(help="That are made up.")] = 10_000_000,
    parts: Annotated[int, typer.Option(help="Of the listing.")] = 2000,
    ray: Annotated[bool, typer.Option("--ray", help="List by Ray's tasks.")] = False,
    latency: Annotated[float, typer.Option(help="Seconds that the store takes for an answer.")] = 0.0,
    step: Annotated[str | None, typer.Option(help="Only write, pretend or resume.")] = None,
) -> None:
    """Measure each step in a process of its own."""
    url = as_url(folder)
    if step == "pretend":
        pretend(url)
    elif step is not None:
        how = {"PHOTOGRAPHS": str(photographs), "LATENCY": str(latency)}
        os.environ.update(how, PYTHONPATH=os.pathsep.join(sys.path))  # for the cluster's processes
        make_up()
        if ray and step == "write":
            hook = {"worker_process_setup_hook": "benchmarks.listing.make_up"}
            import_module("ray").init("local", include_dashboard=False, log_to_driver=False, runtime_env=hook)
        started, cpu, apart = time.monotonic(), time.process_time(), dict[str, float]()
        if step == "write":
            apart = write(url, parts, on_ray=ray)
        else:
            resume(url)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cpu = time.process_time() - cpu - sum(apart.values())
        figures = {"seconds": time.monotonic() - started, "cpu": cpu, **apart, "peak_mib": peak}
        print(step, json.dumps({name: round(value, 1) for name, value in figures.items()}))
    else:
        for own in ("write", "pretend", "resume"):
            subprocess.run([sys.executable, "-m", "benchmarks.listing", *sys.argv[1:], "--step", own], check=True)  # noqa: S603


if __name__ == "__main__":
    typer.run(main)
