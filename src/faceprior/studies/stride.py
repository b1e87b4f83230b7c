"""On how sparse a grid the condition should stand, overall and around eyes, mouth and skin."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from faceprior.evaluation.regions import REGIONS, face_regions
from faceprior.methods import DEFAULT_PRESET, find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage
from faceprior.studies.held_out import HeldOut
from faceprior.studies.tables import Row, draw_lines, require_matplotlib, write_csv, write_plot

STRIDES = (1, 2, 4, 8)

PLOTTED = ("psnr", "ssim", "identity", *(f"psnr_{region}" for region in REGIONS))


def corrected_strides(pipeline: FacePriorPipeline) -> list[int]:
    """Strides that the pipeline's corrector serves: the multiples of its own; none without a corrector."""
    corrector = pipeline.corrector
    return [] if corrector is None else [stride for stride in STRIDES if stride % corrector.stride == 0]


def study_stride(pipeline: FacePriorPipeline, held_out: HeldOut, output: Path, damage: Damage) -> list[Row]:
    """Restore with each stride, without and, where it fits, with the corrector; writes `stride.csv`, `stride.png`.

    Args:
        pipeline: prior and corrector.
        held_out: faces.
        output: folder.
        damage: how inputs are made.

    Returns:
        The table: a row for each stride, estimate and use of the corrector, with the PSNR of each region.

    Raises:
        OptionError: matplotlib is not installed, the prior's card has no template, or a stride does not divide the
            prior's resolution.
    """
    require_matplotlib()
    regions = face_regions(pipeline.prior.card.template, pipeline.resolution)
    bare, preset, corrected = pipeline.without_corrector(), find_preset(DEFAULT_PRESET), corrected_strides(pipeline)
    presets = {stride: preset.with_options(stride=stride) for stride in STRIDES}
    for chosen in presets.values():
        bare.check(chosen)
    rows = [
        one.row
        for stride, chosen in presets.items()
        for one in held_out.measure(
            {"stride": stride},
            pipeline if stride in corrected else bare,
            [damage],
            chosen,
            without_corrector=stride in corrected,
            regions=regions,
        )
    ]
    write_csv(output / "stride.csv", rows)
    write_plot(
        output / "stride.png",
        [partial(draw_lines, rows=rows, x="stride", figure=figure, lines=("corrector",)) for figure in PLOTTED],
    )
    return rows
