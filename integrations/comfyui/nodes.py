"""Two nodes: load a prior with its corrector, and restore the faces of images."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, ClassVar

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from PIL import Image

from faceprior import FacePriorPipeline
from faceprior.devices import choose_dtype
from faceprior.faces import load_detector
from faceprior.images import encode_png
from faceprior.methods import PRESETS, find_preset
from faceprior.photographs import RestoreOptions, compose, how_made, prepare, restore

if TYPE_CHECKING:
    from faceprior.sampling import Step

EMBEDDED = "faces-128"
MOST_SEEDS = 2**63 - 1


class LoadFacePrior:
    """A prior and its corrector, on ComfyUI's device."""

    CATEGORY = "image/faceprior"
    FUNCTION = "load"
    RETURN_TYPES = ("FACEPRIOR",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """What the node shows: embedded name, folder or hub id of the prior, and of the corrector."""
        return {
            "required": {
                "prior": ("STRING", {"default": EMBEDDED}),
                "corrector": ("STRING", {"default": "auto"}),
            }
        }

    def load(self, prior: str, corrector: str) -> tuple[FacePriorPipeline]:
        """Load both; raises FacePriorError, whose message ComfyUI shows."""
        device = comfy.model_management.get_torch_device()
        pipeline = FacePriorPipeline.from_pretrained(prior, corrector=corrector)
        return (pipeline.to(device, choose_dtype("auto", device)),)


class RestoreFaces:
    """Finds the faces of images, restores them and puts them back; images with no face stay as they are."""

    CATEGORY = "image/faceprior"
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE",)

    KINDS: ClassVar[list[str]] = ["auto", "photo", "aligned"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """What the node shows."""
        return {
            "required": {
                "images": ("IMAGE",),
                "faceprior": ("FACEPRIOR",),
                "preset": (list(PRESETS), {"default": "default"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MOST_SEEDS}),
                "blend": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
                "kind": (cls.KINDS, {"default": "auto"}),
            }
        }

    def restore(
        self, images: torch.Tensor, faceprior: FacePriorPipeline, preset: str, seed: int, blend: float, kind: str
    ) -> tuple[torch.Tensor]:
        """Restore images, (B, H, W, 3) in [0, 1]; the result is as large, but R×R for an aligned face."""
        options = RestoreOptions(kind=kind, preset=find_preset(preset), preset_name=preset, seed=seed, blend=blend)
        detector = None if kind == "aligned" else load_detector()
        card = faceprior.prior.card
        prepared = [
            prepare(encode_png(_to_uint8(image)), f"image {number}.png", card, options, detector)
            for number, image in enumerate(images, 1)
        ]
        conditions = [condition for one in prepared for condition in one.conditions]
        bar = comfy.utils.ProgressBar(max(1, len(conditions) * faceprior.evaluations(options.preset)))

        def stepped(_step: Step, _x0: torch.Tensor, rows: list[int]) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(len(rows))

        samples = iter(restore(faceprior, conditions, options, stepped))
        made = how_made(faceprior, options)
        results = []
        for one in prepared:
            composed = compose(one, [next(samples) for _ in one.conditions], made, options)
            results.append(_to_tensor(composed.files[0].content))
        if len({result.shape for result in results}) > 1:
            raise ValueError("some images were taken for aligned faces and some for photographs; choose a kind")
        return (torch.stack(results),)


def _to_uint8(image: torch.Tensor) -> np.ndarray[Any, Any]:
    return (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _to_tensor(content: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(content)) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32) / 255)


NODE_CLASS_MAPPINGS = {"LoadFacePrior": LoadFacePrior, "RestoreFaces": RestoreFaces}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadFacePrior": "Load face prior", "RestoreFaces": "Restore faces (faceprior)"}
