"""Synthetic faces for the training tests: smooth random pictures, mirrored at random, of a few sources."""

import numpy as np
from PIL import Image

from faceprior.training.shards import PackedFaces, pack

SOURCES = {"portraits": ("open", 12), "press": ("research", 8)}


def smooth_picture(seed, side=32):
    """A random smooth RGB picture, uint8, (side, side, 3)."""
    coarse = np.random.default_rng(seed).integers(30, 226, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def write_faces(root):
    """Two folders of pictures with their `index.csv`; returns the folders."""
    folders = []
    for number, (source, (terms, count)) in enumerate(SOURCES.items()):
        folder = root / source
        folder.mkdir(parents=True)
        rows = ["file,source,terms,licence"]
        for i in range(count):
            Image.fromarray(smooth_picture(100 * number + i)).save(folder / f"{source}-{i:03d}.png")
            rows.append(f"{source}-{i:03d}.png,{source},{terms},licence of {source}")
        (folder / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        folders.append(folder)
    return folders


def pack_faces(root):
    """Pack them, a third held out; returns the folder of shards."""
    pack(write_faces(root / "pictures"), root / "packed", size=32, held_out=0.34)
    return root / "packed"


def splits(folder, terms=None):
    """Return the training and the held-out split."""
    return PackedFaces(folder, "train", terms), PackedFaces(folder, "val")
