"""How good a prior and a corrector are: held-out faces, degraded, restored and compared."""

from __future__ import annotations

from collections.abc import Callable

import torch

from faceprior.degradations import bicubic_downscale, chain_preset, real_world
from faceprior.methods import Preset
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.pipeline.results import Restored


def evaluate_held_out(
    pipeline: FacePriorPipeline,
    faces: torch.Tensor,
    scale: float,
    preset: Preset,
    *,
    degradation: str = "bicubic",
    samples: int = 8,
    seed: int = 0,
    on_face: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Mean figures over faces: PSNR, SSIM and LR consistency of bicubic, of one sample and of the samples' mean.

    Args:
        pipeline: prior and corrector.
        faces: sharp faces, (B, 3, R, R) in [-1, 1].
        scale: R/n of the inputs made from them.
        preset: how they are restored.
        degradation: "bicubic", or a preset of the real-world chain, which comes before the reduction.
        samples: samples of each face.
        seed: of the chain; face i is restored with seed + i.
        on_face: called after every face.

    Returns:
        {"psnr" | "ssim" | "consistency": {"bicubic" | "restored" | "mean": value}}.
    """
    side = round(pipeline.resolution / scale)
    rows = []
    for index, face in enumerate(faces):
        damaged = face
        if degradation != "bicubic":
            damaged = real_world(face, chain_preset(degradation), torch.Generator().manual_seed(seed + index))
        low_resolution = bicubic_downscale(damaged[None], side)[0]
        generator = torch.Generator().manual_seed(seed + index)
        images = pipeline.restore([low_resolution], [generator], samples, preset, batch_size=samples)[0]
        rows.append(Restored(low_resolution, face, images).fidelity())
        on_face()
    return {
        figure: {name: sum(row[figure][name] for row in rows) / len(rows) for name in names}
        for figure, names in rows[0].items()
    }
