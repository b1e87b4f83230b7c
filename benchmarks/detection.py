"""How long the search for faces takes, in photographs of several sizes.

    python benchmarks/detection.py [--threads N]

The photographs are scikit-image's astronaut in the middle of smooth noise, upright and upside down. Printed is the
median by wall time of three runs after one to warm up, with the seconds of the processor that it took.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image
from skimage import data

from faceprior.faces import load_detector

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--threads", type=int, default=2)
torch.set_num_threads(arguments.parse_args().threads)

detector, astronaut, rng = load_detector(), Image.fromarray(data.astronaut()), np.random.default_rng(0)
for width, height in ((4000, 3000), (1632, 1224), (816, 612)):
    scene = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    face = astronaut.resize((height * 3 // 4,) * 2, Image.Resampling.BICUBIC)
    scene.paste(face, ((width - face.width) // 2, (height - face.height) // 2))
    for name, photo in (("upright", scene), ("upside down", scene.rotate(180))):
        detector(photo)
        rows = []
        for _ in range(3):
            wall, processor = time.perf_counter(), time.process_time()
            faces = detector(photo)
            rows.append((time.perf_counter() - wall, time.process_time() - processor))
        wall, processor = sorted(rows)[1]
        print(
            f"{width * height / 1e6:.1f} MP, {name}: {len(faces)} found, {wall:.2f} s, {processor:.2f} s of processor"
        )
