"""How long a run over millions of photographs takes to start, and how much memory: a listing made, and a run resumed.

    python benchmarks/listing.py --photographs 10000000 --folder /tmp/listing

The keys are made up; what a store takes to tell them is not in it (docs/scale.md).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from faceprior.folders.inputs import Input
from faceprior.scale.journal import Journal
from faceprior.scale.listing import read_listing, write_listing
from faceprior.storage import Url, as_url, place

PER_FOLDER = 1000
SETTINGS = {"made": "up"}


def made_up(photographs: int) -> Iterator[Input]:
    """Keys as a bucket has them; every hundredth has a twin of another format, whose results must not meet."""
    for number in range(photographs):
        folder = f"{number // PER_FOLDER:06d}"
        name = f"IMG_{number - (number % 100 == 1):08d}{'.png' if number % 100 == 1 else '.jpg'}"
        stamp = {"bytes": 3_000_000 + number, "modified_ns": 1_700_000_000_000_000_000 + number}
        yield Input(Url(f"s3://bucket/photographs/{folder}/{name}"), folder, stamp=stamp)


def write(folder: Url, photographs: int, parts: int) -> None:
    """Write the listing."""
    write_listing(made_up(photographs), folder / "listing", place("s3://bucket/out"), [""], parts, SETTINGS)


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
        started, cpu = time.monotonic(), time.process_time()
        if options.step == "write":
            write(folder, options.photographs, options.parts)
        else:
            resume(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        figures = {"seconds": time.monotonic() - started, "cpu": time.process_time() - cpu, "peak_mib": peak}
        print(options.step, json.dumps({name: round(value, 1) for name, value in figures.items()}))
    else:
        for step in ("write", "pretend", "resume"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--step", step], check=True)  # noqa: S603


if __name__ == "__main__":
    main()
