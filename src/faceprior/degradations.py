"""How a sharp face becomes a bad one: bicubic, noise, the real-world chain, darkness, things in the way.

The real-world chain of blind face restoration is LQ = resize(JPEG_q((HQ ⊗ blur_σ) ↓_r + noise_δ)). Its presets are
published for 512×512; here σ and r shrink with the resolution, so that the same share of the face is lost, and a
reduction that would then enlarge (r below 1) is left out: at 128×128 that is 44 % of GFPGAN's draws.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from faceprior.errors import OptionError
from faceprior.images import resize, to_pil, to_tensor, to_uint8


@dataclass(frozen=True)
class ChainPreset:
    """Ranges of the real-world chain, each drawn uniformly; lengths are for 512×512.

    Attributes:
        blur_sigma: standard deviation of the Gaussian blur, in pixels.
        downscale: factor r.
        noise: standard deviation of the Gaussian noise, in 1/255 of [0, 1].
        jpeg_quality: JPEG quality.
        colour_jitter: probability that each channel is shifted by up to 20/255 in [0, 1].
        grey: probability that the result is grey.
    """

    blur_sigma: tuple[float, float]
    downscale: tuple[float, float]
    noise: tuple[float, float]
    jpeg_quality: tuple[int, int]
    colour_jitter: float = 0.0
    grey: float = 0.0


CHAIN_PRESETS = {
    "gfpgan": ChainPreset((0.1, 10.0), (0.8, 8.0), (0.0, 20.0), (60, 100), colour_jitter=0.3, grey=0.01),
    "codeformer": ChainPreset((1.0, 15.0), (4.0, 30.0), (0.0, 20.0), (30, 80)),
    "difface": ChainPreset((0.1, 15.0), (0.8, 32.0), (0.0, 20.0), (30, 100)),
    "diffbir": ChainPreset((0.1, 12.0), (1.0, 12.0), (0.0, 15.0), (30, 100)),
}
"""Published ranges: GFPGAN (Wang et al. 2021), CodeFormer (Zhou et al. 2022), DifFace (Yue & Loy 2024), DiffBIR
(Lin et al. 2024)."""


_FIRST_ROUND = ChainPreset((0.2, 12.0), (1.0, 16.0), (1.0, 25.0), (30, 95))
_SECOND_ROUND = ChainPreset((0.2, 6.0), (1.0, 8.0), (1.0, 15.0), (40, 95))
_COLOUR_SHIFT = 2 * 20 / 255  # in [-1, 1]

OCCLUSIONS = ("occlusion-mask", "occlusion-glasses", "occlusion-hand")
"""Things drawn in front of a face: a medical mask, sunglasses, the fingers of a hand."""

_NOISE = "noise-"
_NAMES = ("bicubic", f"{_NOISE}SIGMA (of [0, 1], for example {_NOISE}0.05)", *CHAIN_PRESETS, "low-light", *OCCLUSIONS)

_EXPOSURE = (1 / 32, 1 / 8)  # of low light, drawn log-uniformly: three to five stops too dark
_FULL_WELL, _READ_NOISE = 2000.0, 0.002  # electrons at white, and a share of white: a small sensor's
_SUPERSAMPLING = 4


def check_degradation(name: str) -> None:
    """Raise OptionError unless `make_input` knows a degradation of that name."""
    if name.startswith(_NOISE):
        noise_level(name)
    elif name not in _NAMES:
        raise OptionError(f"degradation {name!r} is not known; choose {', '.join(_NAMES)}")


def noise_level(name: str) -> float:
    """Return the standard deviation of the noise of a degradation, on the scale of [0, 1] pixel values.

    Raises:
        OptionError: the name is not "noise-" and a number between 0 and 1.
    """
    if not name.startswith(_NOISE):
        return 0.0
    try:
        sigma = float(name.removeprefix(_NOISE))
    except ValueError:
        sigma = math.nan
    if not 0 < sigma < 1:
        raise OptionError(f"degradation {name!r}: write noise-SIGMA, a number of [0, 1], for example noise-0.05")
    return sigma


def make_input(
    face: torch.Tensor,
    name: str,
    side: int,
    generator: torch.Generator,
    landmarks: Sequence[tuple[float, float]] = (),
) -> torch.Tensor:
    """Make a low-resolution face out of a sharp one: damage first, then the bicubic reduction, then noise.

    Args:
        face: (3, R, R) in [-1, 1], on the CPU.
        name: "bicubic" (the reduction alone); "noise-σ", Gaussian noise on the reduced face with σ on the scale of
            [0, 1] pixel values; a preset of the real-world chain; "low-light"; or one of `OCCLUSIONS`.
        side: n, in pixels.
        generator: source of all draws.
        landmarks: for an occlusion, where the five landmarks of a card's template stand, as fractions of the side.

    Returns:
        (3, n, n) in [-1, 1], rounded to 8 bits as a file would be.

    Raises:
        OptionError: the degradation is unknown, or an occlusion has no landmarks to stand on.
    """
    check_degradation(name)
    if name in CHAIN_PRESETS:
        face = real_world(face, CHAIN_PRESETS[name], generator)
    elif name == "low-light":
        face = low_light(face, generator)
    elif name in OCCLUSIONS:
        face = occlude(face, name, generator, landmarks)
    small = bicubic_downscale(face[None], side)[0]
    sigma = noise_level(name)
    if sigma:
        small = to_uint8(small + 2 * sigma * torch.randn(small.shape, generator=generator)).float() / 127.5 - 1.0
    return small


def bicubic_downscale(faces: torch.Tensor, side: int) -> torch.Tensor:
    """Antialiased bicubic, rounded to 8 bits as a file would be.

    Args:
        faces: (B, 3, R, R) in [-1, 1].
        side: side of the result, in pixels.

    Returns:
        (B, 3, side, side).
    """
    return to_uint8(resize(faces, side)).float() / 127.5 - 1.0


def real_world(face: torch.Tensor, preset: ChainPreset, generator: torch.Generator) -> torch.Tensor:
    """Send one face through the real-world chain, with everything drawn from `generator` (on the CPU).

    Args:
        face: (3, R, R) in [-1, 1], on the CPU.
        preset: the ranges.
        generator: source of all draws.

    Returns:
        (3, R, R) in [-1, 1].
    """
    side = face.shape[-1]
    shrink = side / 512

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    sigma = draw(*preset.blur_sigma) * shrink
    isotropic = draw(0, 1) < 0.5
    sigma_across = sigma if isotropic else draw(*preset.blur_sigma) * shrink
    blurred = gaussian_blur(face[None], sigma, sigma_across, draw(0, np.pi))
    factor = max(1.0, draw(*preset.downscale) * shrink)
    small = _bilinear(blurred, max(4, int(side / factor)))
    small = small + torch.randn(small.shape, generator=generator) * (draw(*preset.noise) * 2 / 255)
    quality = round(draw(*preset.jpeg_quality))
    damaged = _bilinear(jpeg(small[0], quality)[None], side)[0]
    if draw(0, 1) < preset.colour_jitter:
        damaged = damaged + (2 * torch.rand(3, 1, 1, generator=generator) - 1) * _COLOUR_SHIFT
    if draw(0, 1) < preset.grey:
        damaged = grey(damaged)
    return damaged.clamp(-1, 1)


def _bilinear(images: torch.Tensor, side: int) -> torch.Tensor:
    """Resize as the chains' sources do: bilinear, without antialiasing (OpenCV's INTER_LINEAR)."""
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def second_order(face: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Damage a face twice over, as BSRGAN (Zhang et al. 2021) and Real-ESRGAN (Wang et al. 2021) do: (3, R, R) both.

    Two rounds of blur, reduction, noise and JPEG, the second milder; theirs also shuffle the order.
    """
    return real_world(real_world(face, _FIRST_ROUND, generator), _SECOND_ROUND, generator)


def grey(image: torch.Tensor) -> torch.Tensor:
    """Luma of an image (..., 3, H, W) in all three channels (ITU-R BT.601)."""
    weights = image.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    return (image * weights).sum(-3, keepdim=True).expand_as(image)


def film_grain(image: torch.Tensor, sigma: float, size: float, generator: torch.Generator) -> torch.Tensor:
    """Add grain: blurred Gaussian noise, the same in all channels.

    Args:
        image: (3, H, W) in [-1, 1].
        sigma: of the grain after the blur.
        size: standard deviation of the blur, in pixels; 0 is white noise.
        generator: source of all draws.
    """
    noise = gaussian_blur(torch.randn(1, 1, *image.shape[-2:], generator=generator), size, size, 0.0)[0]
    return image + 2 * sigma * noise / noise.std().clamp(min=1e-6)


def halftone(image: torch.Tensor, period: float, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Print an image (3, H, W) through a dot screen at 45°: a cosine of `period` pixels, of depth `strength`."""
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    phase = 2 * math.pi * torch.rand(2, generator=generator)
    turn = 2 * math.pi / period / math.sqrt(2)
    dots = torch.cos((x + y) * turn + phase[0]) * torch.cos((x - y) * turn + phase[1])
    return image + strength * dots * (1 - image.square()).clamp(min=0)


def scratch(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one to four thin, nearly vertical lines, light or dark, over an image (3, H, W)."""
    height, width = image.shape[-2:]
    canvas = to_pil(image)
    pen = ImageDraw.Draw(canvas)
    for _ in range(1 + int(torch.randint(4, (), generator=generator))):
        top, bottom, light = torch.rand(3, generator=generator).tolist()
        ends = [(top * width, 0), ((0.8 * top + 0.2 * bottom) * width, height)]
        pen.line(ends, fill=(round(255 * (light > 0.4)),) * 3, width=1)
    return to_tensor(canvas)


def low_light(face: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Take a picture of the face in three to five stops too little light, with a small sensor's noise.

    In linear light (sRGB, IEC 61966-2-1) the face is darkened by an exposure e, then gets shot noise, whose variance
    is the signal over the sensor's full well, and read noise (the Poisson–Gaussian model, Foi et al. 2008).

    Args:
        face: (3, R, R) in [-1, 1].
        generator: source of all draws.
    """
    low, high = (math.log(bound) for bound in _EXPOSURE)
    exposure = math.exp(low + (high - low) * float(torch.rand((), generator=generator)))
    srgb = (face + 1) / 2
    light = exposure * torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    spread = (light / _FULL_WELL + _READ_NOISE**2).sqrt()
    seen = (light + spread * torch.randn(light.shape, generator=generator)).clamp(0, 1)
    encoded = torch.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    return encoded * 2 - 1


def occlude(
    face: torch.Tensor, kind: str, generator: torch.Generator, landmarks: Sequence[tuple[float, float]]
) -> torch.Tensor:
    """Draw something in front of a face: plain shapes by its landmarks, with a random colour and a small shift.

    Args:
        face: (3, R, R) in [-1, 1].
        kind: one of `OCCLUSIONS`.
        generator: source of all draws.
        landmarks: image-left eye, image-right eye, nose tip, image-left and image-right mouth corner, as fractions
            of the side.

    Raises:
        OptionError: there are no landmarks.
    """
    if len(landmarks) != 5:
        raise OptionError(f"{kind} needs the place of the landmarks, and the prior's card has no template")
    size = face.shape[-1] * _SUPERSAMPLING
    left, right, nose, mouth_left, mouth_right = (np.array(point) * size for point in landmarks)
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    width = float(np.linalg.norm(right - left))  # between the eyes: the unit of everything below

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    shift = np.array([draw(-0.05, 0.05), draw(-0.05, 0.05)]) * width
    cover = Image.new("L", (size, size))
    pen = ImageDraw.Draw(cover)

    def place(x: float, y: float, origin: np.ndarray) -> tuple[float, float]:
        return (float(origin[0] + shift[0] + x * width), float(origin[1] + shift[1] + y * width))

    if kind == "occlusion-mask":
        bridge = (eyes + nose) / 2
        outline = [place(-0.95, -0.05, bridge), place(0, -0.1, bridge), place(0.95, -0.05, bridge)]
        outline += [place(0.75, 0.35, mouth), place(0.35, 0.75, mouth), place(-0.35, 0.75, mouth)]
        pen.polygon([*outline, place(-0.75, 0.35, mouth)], fill=255)
        light = draw(0.3, 0.9)
        colour = torch.tensor([light - 0.2, light, light + 0.1])
    elif kind == "occlusion-glasses":
        for eye in (left, right):
            pen.ellipse([place(-0.38, -0.28, eye), place(0.38, 0.32, eye)], fill=255)
        pen.line([place(-0.2, -0.05, eyes), place(0.2, -0.05, eyes)], fill=255, width=round(0.08 * width))
        colour = torch.full((3,), draw(-0.98, -0.8))
    else:
        side = 1 if draw(0, 1) < 0.5 else -1
        for finger in range(4):
            tip, root = place(-0.5 * side, 0.3 * finger - 0.45, mouth), place(1.6 * side, 0.36 * finger, mouth)
            thickness = round(0.32 * width)
            pen.line([tip, root], fill=255, width=thickness)
            pen.ellipse([(c - thickness / 2) for c in tip] + [(c + thickness / 2) for c in tip], fill=255)
        centre = slice(round(0.4 * face.shape[-1]), round(0.6 * face.shape[-1]))
        colour = (face[:, centre, centre].flatten(1).median(1).values + draw(-0.25, 0.0)).clamp(-1, 1)
    alpha = to_tensor(cover.resize((face.shape[-1],) * 2, Image.Resampling.BOX))[:1] / 2 + 0.5  # (1, R, R)
    return face + alpha * (colour[:, None, None] - face)


def gaussian_blur(images: torch.Tensor, sigma: float, sigma_across: float, angle: float) -> torch.Tensor:
    """Blur with an anisotropic Gaussian.

    Args:
        images: (B, C, H, W).
        sigma: standard deviation along `angle`, in pixels; 0 leaves the images as they are.
        sigma_across: standard deviation across it.
        angle: in radians.
    """
    radius = min(int(np.ceil(3 * max(sigma, sigma_across))), min(images.shape[-2:]) - 1)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    floor = 1e-3  # of a pixel: keeps a zero width from dividing by zero
    kernel = torch.exp(-0.5 * ((along / max(sigma, floor)) ** 2 + (across / max(sigma_across, floor)) ** 2))
    kernel = (kernel / kernel.sum()).to(images)
    channels = images.shape[1]
    padded = F.pad(images, (radius,) * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(channels, 1, -1, -1), groups=channels)


def jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    """Compress one (3, H, W) image with JPEG at `quality` (1 to 100) and decode it again."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        return to_tensor(decoded)
