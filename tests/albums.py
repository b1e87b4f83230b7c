"""An album of tiny photographs, a detector that finds their faces without looking, and networks that restore them."""

from dataclasses import dataclass, replace

from PIL import Image

from faceprior.faces import DetectedFace
from faceprior.pipeline.face_prior import FacePriorPipeline
from faceprior.priors.card import TIGHT_TEMPLATE
from tiny_faces import smooth_picture

SIDES = (20, 14)  # of the aligned squares of the faces in a photograph


@dataclass
class CornerDetector:
    """Finds a face in the top left corner of a picture, and a smaller one beside it where there is room."""

    name: str = "corner"

    def __call__(self, photo, min_face=24):
        faces, left = [], 2
        for side in SIDES:
            if left + side <= photo.width and side >= min_face:
                points = [(left + x * side, 2 + y * side) for x, y in TIGHT_TEMPLATE]
                faces.append(DetectedFace((left, 2, left + side, 2 + side), points, 1.0))
            left += side + 2
        return faces


def tiny_pipeline(tiny):
    """Networks of the fixture `tiny` for faces aligned as `CornerDetector` finds them."""
    prior = tiny.gaussian_prior()
    prior.card = replace(prior.card, template=TIGHT_TEMPLATE)
    return FacePriorPipeline(prior, tiny.corrector())


def save_photo(path, width=44, height=30, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_picture(seed, 64)[:height, :width]).save(path, **options)
    return path


def save_album(folder):
    """Photographs of two, one and no faces in three formats, and a file that is none."""
    save_photo(folder / "b.jpg", seed=1, quality=90)
    save_photo(folder / "a.png", 30, seed=2)
    save_photo(folder / "trip" / "c.webp", seed=3)
    save_photo(folder / "trip" / "empty.png", 18, seed=4)
    (folder / "trip" / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no picture, and not called one")
    return folder


KILLS, HANGS = (31, 31), (33, 33)  # sizes of photographs that `PoisonedDetector` does not survive


class PoisonedDetector(CornerDetector):
    """Ends its process at photographs of one size, and never ends at those of another."""

    def __call__(self, photo, min_face=24):
        import os
        import signal
        import time

        if photo.size == KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        while photo.size == HANGS:
            time.sleep(1)
        return super().__call__(photo, min_face)
