"""What a weights file says about itself: `card.json`, beside the weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from faceprior.errors import WeightsError

CARD_NAME = "card.json"

PredictionType = Literal["epsilon", "sample", "v_prediction"]
"""What a prior's network predicts."""

Landmarks = tuple[tuple[float, float], ...]

TIGHT_TEMPLATE: Landmarks = ((0.285, 0.330), (0.715, 0.330), (0.500, 0.567), (0.3236, 0.760), (0.6764, 0.760))
"""Forehead to chin; the embedded prior's alignment. Order: image-left eye, image-right eye, nose tip, image-left
and image-right mouth corner, as fractions (x, y) of the side."""

FFHQ_TEMPLATE: Landmarks = (
    (0.37692, 0.46865),
    (0.62286, 0.46913),
    (0.50050, 0.61332),
    (0.39309, 0.72541),
    (0.61146, 0.72490),
)
"""Mean landmarks of aligned FFHQ faces; the template that blind face restoration crops its 512×512 test sets with
(facexlib's `face_template`)."""


@dataclass(frozen=True)
class ModelCard:
    """Self-description of a prior or a corrector.

    Attributes:
        kind: "prior" or "corrector".
        name: short name.
        resolution: side R of the images, in pixels.
        sha256: of the weights file, hex.
        template: where five landmarks stand in an aligned face, as fractions of the side; empty if unknown.
        schedule: the noise schedule, and of a prior the prediction type, as a diffusers scheduler configuration.
        source: folder, file or hub id that the weights were loaded from or converted from.
        licence: what the weights may be used for.
        data: training data; one entry a source with its name, number of faces, terms and licence.
        training: command, samples seen, hours, hardware.
        held_out: measured figures, with the command that makes them.
        calibration: of a corrector, or of a prior without one: (error scale, factor that turns it into the half-width
            of a 90 % interval), rising, by name (`faceprior.doubt`).
        texture: of a prior: factor of DPI's option `texture` for its samples. Below 1 where they are grainy, so that
            they deviate from the expectation by more than a face does.
        limits: where the model is weak, a sentence each.
    """

    kind: Literal["prior", "corrector"]
    name: str
    resolution: int
    sha256: str = ""
    template: Landmarks = ()
    schedule: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    licence: str = "unknown"
    data: list[dict[str, Any]] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    held_out: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    texture: float = 1.0
    limits: list[str] = field(default_factory=list)

    @property
    def prediction_type(self) -> str:
        """What the network of a prior predicts: "epsilon", "sample" or "v_prediction"."""
        return str(self.schedule.get("prediction_type", "epsilon"))

    def write(self, folder: Path) -> None:
        """Write `card.json` into a folder."""
        write_json(folder / CARD_NAME, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> ModelCard | None:
        """Read `card.json` of a folder; None if there is none.

        Raises:
            WeightsError: the card is damaged or lacks what a card must have.
        """
        path = folder / CARD_NAME
        if not path.is_file():
            return None
        values = read_json(path)
        values.pop("prediction_type", None)  # cards once said it twice
        if unknown := sorted(values.keys() - {own.name for own in fields(cls)}):
            raise WeightsError(f"{path}: unknown entries {', '.join(unknown)}")
        try:
            values["template"] = tuple((float(x), float(y)) for x, y in values.get("template", ()))
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{path}: is not a valid card ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises WeightsError naming the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: is not a JSON object")
    return values


def write_json(path: Path, values: dict[str, Any], *, sort_keys: bool = False) -> None:
    """Write a JSON object, for people to read too."""
    text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    path.write_text(text + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
