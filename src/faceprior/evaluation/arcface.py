"""ArcFace embeddings (Deng et al., CVPR 2019) from a checkpoint of insightface's `arcface_torch`.

The network is the IResNet of that repository (`backbones/iresnet.py`): depth and widths are read off the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faceprior.errors import WeightsError, one_line
from faceprior.evaluation.identity import realigned
from faceprior.images import to_tensor
from faceprior.priors.card import Landmarks
from faceprior.priors.checkpoint import read_state_dict

ARCFACE_SAME_PERSON = 0.32
"""Cosine similarity from which two embeddings count as one person: DeepFace's threshold for ArcFace, a cosine
distance of 0.68. It depends on the checkpoint; state it with every figure."""

INPUT_SIDE = 112
"""Side of the network's input, in pixels."""

INPUT_TEMPLATE: Landmarks = tuple(
    (x / INPUT_SIDE, y / INPUT_SIDE)
    for x, y in (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    )
)
"""insightface's `arcface_dst`, as fractions of the side."""

_STAGES = 4


class ArcFaceEmbedder:
    """An ArcFace network, for faces that are aligned already.

    Args:
        checkpoint: state dictionary of an IResNet (`backbone.pth`), .pt, .pth or .safetensors.
        device: where to compute.

    Raises:
        WeightsError: the file cannot be read safely, or is not an IResNet's.
    """

    def __init__(self, checkpoint: Path, device: torch.device) -> None:
        self.network = load_iresnet(checkpoint).to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, template: Landmarks) -> torch.Tensor:
        """Embed faces, (B, 3, R, R) in [-1, 1] → (B, D), float64; see `faceprior.evaluation.identity.Embedder`."""
        chips = [to_tensor(chip) for chip in realigned(images, template, INPUT_TEMPLATE, INPUT_SIDE)]
        return self.network(torch.stack(chips).to(self._device)).double().cpu()


def load_iresnet(checkpoint: Path) -> IResNet:
    """Load an IResNet, its depth and widths read off the weights; see `ArcFaceEmbedder`."""
    weights = {name: value.float() for name, value in read_state_dict(checkpoint).items()}
    try:
        network = IResNet(**_architecture(weights))
        network.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{checkpoint}: is no IResNet of insightface's arcface_torch ({one_line(error)}); give its backbone.pth"
        ) from error
    return network.eval().requires_grad_(requires_grad=False)


def _architecture(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    stages = range(1, _STAGES + 1)
    blocks = [len({name.split(".")[1] for name in weights if name.startswith(f"layer{stage}.")}) for stage in stages]
    widths = [len(weights[f"layer{stage}.0.conv2.weight"]) for stage in stages]
    embedding, flat = weights["fc.weight"].shape
    side = round((flat / widths[-1]) ** 0.5)
    return {"blocks": blocks, "widths": widths, "embedding": embedding, "final_side": side}


class _Block(nn.Module):
    """Pre-activated residual block, 3×3 twice; the second convolution reduces (IBasicBlock)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-5)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=1e-5)
        shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, eps=1e-5)
        self.downsample = nn.Sequential(*shortcut) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return residual + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Improved ResNet of arcface_torch; parameter names are those of its checkpoints.

    Args:
        blocks: residual blocks of the four stages; (3, 4, 14, 3) is IResNet-50.
        widths: channels of the stages; (64, 128, 256, 512) in all published ones.
        embedding: length of the embedding.
        final_side: side of the last feature map, 7 for pictures of 112.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 14, 3),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        embedding: int = 512,
        final_side: int = 7,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=1e-5)
        self.prelu = nn.PReLU(widths[0])
        inputs = (widths[0], *widths[:-1])
        stages = [
            nn.Sequential(_Block(before, width, 2), *(_Block(width, width, 1) for _ in range(count - 1)))
            for count, before, width in zip(blocks, inputs, widths, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(widths[-1], eps=1e-5)
        self.fc = nn.Linear(widths[-1] * final_side**2, embedding)
        self.features = nn.BatchNorm1d(embedding, eps=1e-5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed pictures, (B, 3, 112, 112) in [-1, 1], RGB → (B, D)."""
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return self.features(self.fc(x.flatten(1)))
