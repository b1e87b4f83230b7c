"""Restore the photographs of a folder, many faces at once: python examples/batch.py ALBUM RESTORED."""

import sys
from itertools import islice
from pathlib import Path

from faceprior import FacePriorPipeline
from faceprior.errors import FacePriorError
from faceprior.faces import load_detector
from faceprior.images import read_file
from faceprior.photographs import RestoreOptions, compose, how_made, prepare, restore

source, target = map(Path, sys.argv[1:])
target.mkdir(exist_ok=True)
pipeline, detector, options = FacePriorPipeline.from_pretrained(), load_detector(), RestoreOptions()
made = how_made(pipeline, options)
paths = iter(sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".png", ".webp")))
while chunk := list(islice(paths, 16)):
    prepared = []
    for path in chunk:
        try:
            prepared.append(prepare(read_file(path), path.name, pipeline.prior.card, options, detector))
        except FacePriorError as error:
            print(f"skipped {error}")
    samples = iter(restore(pipeline, [condition for one in prepared for condition in one.conditions], options))
    for one in prepared:
        result = compose(one, [next(samples) for _ in one.conditions], made, options)
        for file in result.files:
            (target / f"{Path(one.name).stem}{file.suffix}{file.ending}").write_bytes(file.content)
        print(f"{one.name}: {len(one.conditions)} faces")
