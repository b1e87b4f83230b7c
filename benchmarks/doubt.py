"""Calibrate the doubt on held-out faces, and test it on others: python -m benchmarks.doubt --data shards.

Half of the faces give the factors (split conformal prediction), the other half say how many of their pixels lie
inside the intervals. With --write the factors go into the card of a corrector's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from benchmarks.common import load

from faceprior import FacePriorPipeline
from faceprior.corrector import load_corrector
from faceprior.degradations import make_input
from faceprior.doubt import conformal_factors, error_scale, half_width
from faceprior.evaluation.regions import face_regions
from faceprior.methods import find_preset
from faceprior.priors.card import FFHQ_TEMPLATE
from faceprior.training.blind import blind
from faceprior.training.shards import PackedFaces

INPUTS = ("x4", "x8", "x16", "damaged")


def main(
    data: Annotated[Path, typer.Option(help="Packed faces.")],
    faces: Annotated[int, typer.Option(help="Held-out faces, half of them for the factors.")] = 96,
    preset: Annotated[str, typer.Option(help="How they are restored.")] = "default",
    prior: Annotated[str, typer.Option(help="Prior.")] = "faces-128",
    corrector: Annotated[str, typer.Option(help="Corrector.")] = "auto",
    write: Annotated[Path | None, typer.Option(help="Folder of the corrector whose card gets the factors.")] = None,
) -> None:
    """Print a table: factors of the surest and the least sure pixels, and the share of pixels inside."""
    pipeline = load(prior)
    if corrector != "auto":
        pipeline = FacePriorPipeline(pipeline.prior, load_corrector(corrector))
    packed = PackedFaces(data, "val")
    count = min(faces, len(packed))
    clean = packed.batch([number * len(packed) // count for number in range(count)])
    template = pipeline.prior.card.template or FFHQ_TEMPLATE  # random weights have none
    regions = face_regions(template, pipeline.resolution)
    print(f"| input | factors | whole face | {' | '.join(regions)} |\n| --- | --- | --- |{' --- |' * len(regions)}")
    factors = {}
    for name in INPUTS:
        errors, scales = measured(pipeline, clean, name, preset)
        known, others = slice(0, None, 2), slice(1, None, 2)
        found = conformal_factors(errors[known], scales[known])
        factors[name] = [(float(f"{scale:.3g}"), round(factor, 3)) for scale, factor in found]
        reduction = 1.0 if name == "damaged" else float(name[1:])
        inside = (errors[others] / 2 <= half_width(scales[others], factors, reduction)).float()
        shares = [inside.mean().item(), *(inside[:, mask].mean().item() for mask in regions.values())]
        print(
            f"| {name} | {factors[name][0][1]:.2f} to {factors[name][-1][1]:.2f} | "
            + " | ".join(f"{share:.1%}" for share in shares)
            + " |"
        )
    if write is not None:
        card = write / "card.json"
        text = json.dumps({**json.loads(card.read_text()), "calibration": factors}, indent=2, ensure_ascii=False)
        card.write_text(text + "\n", encoding="utf-8")


def measured(
    pipeline: FacePriorPipeline, faces: torch.Tensor, name: str, preset: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Restore faces: the errors of their pixels and the scales of these errors, (B, R, R) each."""
    clean, low = inputs(faces, name)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(low))]
    results = [own.images for own in pipeline.restore(low, generators, 1, find_preset(preset), 8)]
    expected = pipeline.expected(low)
    errors = (torch.cat(results) - clean).square().mean(1).sqrt()
    scales = [error_scale(own[0], known, own) for own, known in zip(results, expected, strict=True)]
    return errors, torch.stack([scale for scale in scales if scale is not None])


def inputs(faces: torch.Tensor, name: str) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Reduce faces, or damage them at their own resolution; returns what is to be restored, and what is given."""
    generator = torch.Generator().manual_seed(1234)
    if name == "damaged":
        pairs = [blind(face, generator, (4.0, 32.0), damaged=1.0) for face in faces]
        return torch.stack([clean for clean, _ in pairs]), [bad for _, bad in pairs]
    side = faces.shape[-1] // int(name[1:])
    return faces, [make_input(face, "bicubic", side, generator) for face in faces]


if __name__ == "__main__":
    typer.run(main)
