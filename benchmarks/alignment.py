"""How far the detector's alignment stands from that of the faces that the embedded prior was trained on.

    python benchmarks/alignment.py FOLDER [--every N]

FOLDER holds pictures of aligned faces (`faceprior data pack` reads the same). Each is put at a random place, turn and
size into a picture of its own, through an oval; it is found there, and aligned again. Printed are the mean and the
standard deviation of how far the second alignment is from the first, in pixels of 128, in percent and in degrees.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from faceprior.faces import load_detector, similarity_transform
from faceprior.priors.card import TIGHT_TEMPLATE

SIDE = 128
MIDDLE = np.array([0.5, 0.5]) * SIDE
TEMPLATE = np.array(TIGHT_TEMPLATE) * SIDE

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("folder", type=Path)
arguments.add_argument("--every", type=int, default=1, help="take every Nth face")
chosen = arguments.parse_args()

detector, rng = load_detector(), np.random.default_rng(0)
y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
oval = Image.fromarray(
    (255 * np.clip((1 - np.hypot((x - 0.5) / 0.5, (y - 0.52) / 0.56)) / 0.06, 0, 1)).astype(np.uint8)
)
paths = sorted(path for path in chosen.folder.rglob("*") if path.suffix in {".webp", ".png", ".jpg"})[:: chosen.every]
shifts, scales, turns = [], [], []
for path in paths:
    enlarged, turn = np.exp(rng.uniform(np.log(0.4), np.log(2.5))), rng.uniform(-np.pi, np.pi)
    size = round(200 * enlarged)
    factor = np.exp(-1j * turn) / enlarged  # from the scene to the face
    shift = complex(*MIDDLE) - factor * complex(size, size) / 2 + complex(*rng.uniform(-8, 8, 2))
    matrix = (factor.real, -factor.imag, shift.real, factor.imag, factor.real, shift.imag)
    face = Image.open(path).convert("RGB").resize((SIDE, SIDE))
    scene = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    pasted, mask = (
        picture.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        for picture in (face, oval)
    )
    scene.paste(pasted, (0, 0), mask)
    for found in detector(scene)[:1]:
        landmarks = (np.array(found.landmarks) @ (1, 1j)) * factor + shift  # in pixels of the face
        again = similarity_transform(np.stack([landmarks.real, landmarks.imag], 1).tolist(), TEMPLATE.tolist())
        shifts.append(again[:, :2] @ MIDDLE + again[:, 2] - MIDDLE)
        scales.append(100 * (np.hypot(*again[:, 0]) - 1))
        turns.append(np.degrees(np.arctan2(again[1, 0], again[0, 0])))

print(f"{len(turns)} of {len(paths)} faces found")
for name, values in (
    ("right, px", np.array(shifts)[:, 0]),
    ("down, px", np.array(shifts)[:, 1]),
    ("scale, %", scales),
    ("turn, °", turns),
):
    print(f"{name}: {np.mean(values):.2f} ± {np.std(values):.2f}")
