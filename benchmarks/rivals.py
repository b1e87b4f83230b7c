"""deepinv's DDRM, DiffPIR and DPS on our prior, in turns with ours: python -m benchmarks.rivals (needs deepinv).

Both get the same network, number format, reduction (with its singular value decomposition, which makes all that they
do with it exact and cheap), batch and number of evaluations.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
import typer

_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")  # what is declared lives as long as this object


def import_deepinv() -> Any:
    """Import deepinv, before anything imports diffusers.

    It imports torchvision, whose wheels on the package index fit CUDA builds of torch only. All that a CPU build
    lacks are two operators that torchvision describes to torch and that the samplers never call: they are declared
    here.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass  # deepinv says what it misses
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[module]  # half-imported
        for name in ("nms", "qnms"):
            _TORCHVISION.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import deepinv
    except ImportError as error:
        raise SystemExit(f"deepinv cannot be imported ({error}); pip install 'deepinv>=0.5'") from error
    return deepinv


def main(prior: str = "", evaluations: int = 20, batch: int = 8, scale: float = 8.0, runs: int = 5) -> None:
    """Measure both in turns; above 1 ours is faster."""
    deepinv = import_deepinv()
    from benchmarks.common import load, machine, show, smooth_faces

    from faceprior.images import resize
    from faceprior.methods import find_preset
    from faceprior.operators import bicubic_reduction

    print(machine())
    pipeline = load(prior)
    network, device, side = pipeline.prior, pipeline.prior.device, round(pipeline.resolution / scale)
    operator = bicubic_reduction(pipeline.resolution, side)
    rows_, columns_ = operator.row_basis.float().to(device), operator.column_basis.float().to(device)
    # a measurement is in the coordinates of the singular vectors, padded with zeros, as deepinv's DDRM takes it
    physics = deepinv.physics.DecomposablePhysics(
        V=lambda spectrum: rows_ @ spectrum @ columns_.mT,
        V_adjoint=lambda image: rows_.mT @ image @ columns_,
        mask=operator.singular_values.float().to(device).expand(1, 3, -1, -1),
        img_size=(3, pipeline.resolution, pipeline.resolution),
        noise_model=deepinv.physics.GaussianNoise(0.01),
        device=device,
    )
    faces = smooth_faces(batch, side)
    measured = physics.A((resize(torch.stack(faces), pipeline.resolution).to(device) + 1) / 2)
    table = []
    for name, sampler in samplers(deepinv, network, evaluations).items():
        preset = find_preset(name).with_options(steps=evaluations)

        def ours(preset: Any = preset) -> object:
            generators = [torch.Generator().manual_seed(number) for number in range(batch)]
            return pipeline.restore(faces, generators, 1, preset, batch, whole_batches=True)

        def theirs(sampler: Any = sampler) -> object:
            return sampler(measured, physics)

        asked = [count_images(network.network, task) for task in (ours, theirs)]
        if asked[0] != asked[1]:
            raise SystemExit(f"{name}: ours asked for {asked[0]} images and theirs for {asked[1]}: no comparison")
        turns = [(seconds(ours, device), seconds(theirs, device)) for _ in range(runs)]
        mine, other = (median(own) / batch for own in zip(*turns, strict=True))
        ratio = median(their / our for our, their in turns)
        table.append((name, asked[0] // batch, f"{mine:.3g}", f"{other:.3g}", f"{ratio:.2f}"))
    columns = ("method", "evaluations", "ours, s/face", "theirs, s/face", "theirs / ours")
    show(f"deepinv {deepinv.__version__}, batch {batch}, in turns", columns, table)


def samplers(deepinv: Any, prior: Any, evaluations: int) -> dict[str, Any]:
    """Return deepinv's samplers on a prior, by our names."""
    # σ of [-1, 1] images at each t
    sigmas = ((1 - prior.schedule.alphas_cumprod) / prior.schedule.alphas_cumprod).sqrt().float().to(prior.device)

    class Denoiser(deepinv.models.Denoiser):
        """The prior as deepinv wants it: ([0, 1] image with noise σ, σ) → [0, 1] image."""

        def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, **_: Any) -> torch.Tensor:
            level = 2 * torch.as_tensor(sigma, device=x.device, dtype=torch.float32).flatten()[0]
            t = (sigmas - level).abs().argmin().expand(len(x))
            return (prior((2 * x - 1) * prior.schedule.at(t).sqrt(), t).x0 + 1) / 2

    denoiser, sampling = Denoiser(device=prior.device), deepinv.sampling
    levels = sigmas[torch.linspace(len(sigmas) - 1, 0, evaluations).round().long()] / 2
    fidelity = deepinv.optim.data_fidelity.L2()
    return {
        "ddrm": sampling.DDRM(denoiser, sigmas=levels.tolist()),
        "diffpir": sampling.DiffPIR(denoiser, fidelity, max_iter=evaluations, device=prior.device.type),
        "dps": sampling.DPS(denoiser, num_steps=evaluations + 1, device=prior.device),  # its last is not evaluated
    }


def count_images(network: torch.nn.Module, task: Callable[[], object]) -> int:
    """Run a task; returns how many images it gave the network."""
    counts: list[int] = []
    handle = network.register_forward_pre_hook(lambda _network, inputs: counts.append(len(inputs[0])))
    task()
    handle.remove()
    return sum(counts)


def seconds(task: Callable[[], object], device: torch.device) -> float:
    """Time of a task, the device's queue included."""
    start = perf_counter()
    task()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
