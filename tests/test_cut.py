"""Training faces out of photographs."""

import csv

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from faceprior.cli.app import app
from faceprior.errors import DataError
from faceprior.faces import DetectedFace
from faceprior.images import read_image
from faceprior.priors.card import TIGHT_TEMPLATE
from faceprior.training.cut import cut_faces
from faceprior.training.shards import PackedFaces, pack

SIDE = 32


class Detector:
    """Finds a face of 64 pixels, drawn as the template has it, at given corners."""

    name = "known"

    def __init__(self, *corners):
        self.corners = corners

    def __call__(self, photo, min_face=24):
        return [
            DetectedFace((x, y, x + 64, y + 64), [(x + 64 * u, y + 64 * v) for u, v in TIGHT_TEMPLATE], 1.0)
            for x, y in self.corners
        ]


def texture(seed, size=(200, 100)):
    """A picture with detail in every pixel, as photographs have it: amplitudes ∝ 1/f."""
    width, height = size
    spectrum = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    spectrum *= (1 / np.maximum(frequency, 1 / max(size)))[..., None]
    picture = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return Image.fromarray((128 + 40 * picture / picture.std()).clip(0, 255).astype(np.uint8))


def photograph(folder, name="group.png", picture=None):
    folder.mkdir(exist_ok=True)
    (picture or texture(0)).save(folder / name)
    return folder / name, name.split(".")[0], "album"


def rows(folder):
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_face_stands_on_the_template(tmp_path):
    report = cut_faces([photograph(tmp_path / "in")], tmp_path / "out", Detector((5, 10), (120, 20)), size=SIDE)
    assert (report.faces, report.left_out, report.problems) == (2, [], [])
    expected = texture(0).crop((120, 20, 184, 84)).resize((SIDE, SIDE), Image.Resampling.BOX)
    cut = read_image(tmp_path / "out" / "group-face2.png")
    assert abs(np.asarray(cut, float) - np.asarray(expected, float)).mean() < 4


def test_the_index_is_what_pack_reads(tmp_path):
    cut_faces([photograph(tmp_path / "in")], tmp_path / "out", Detector((5, 10), (120, 20)), size=SIDE)
    assert [row["original"] for row in rows(tmp_path / "out")] == [str(tmp_path / "in" / "group.png")] * 2
    assert pack([tmp_path / "out"], tmp_path / "packed", size=SIDE).faces == {"train": 1, "val": 1}
    [face] = PackedFaces(tmp_path / "packed", "train").faces
    assert (face.source, face.terms, face.licence) == ("album", "unknown", "unknown")
    assert set(face.labels) == {"original", "detail"}


def test_faces_without_detail_or_beyond_the_edge_are_left_out_and_counted(tmp_path):
    soft = texture(1, (20, 10)).resize((200, 100), Image.Resampling.BICUBIC)
    sharp = soft.copy()
    sharp.paste(texture(2, (70, 70)), (2, 7))
    given = [photograph(tmp_path / "in", "a.png", sharp), photograph(tmp_path / "in", "b.png", soft)]
    detector = Detector((5, 10), (120, 20), (170, 20))
    report = cut_faces(given, tmp_path / "out", detector, size=SIDE)
    assert [row["file"] for row in rows(tmp_path / "out")] == ["a-face1.png"]
    assert report.left_out == [
        "3 faces with less than 24 pixels of detail (--min-detail)",
        "2 faces that the edge of a photograph cuts",
    ]
    assert cut_faces(given, tmp_path / "all", detector, size=SIDE, min_detail=0).faces == 4


def test_one_bad_photograph_stops_no_other(tmp_path):
    given = [photograph(tmp_path / "in", f"{i}.png") for i in range(3)]
    given[1][0].write_bytes(b"no picture")
    report = cut_faces(given, tmp_path / "out", Detector((5, 10)), size=SIDE)
    assert report.faces == 2
    [problem] = report.problems
    assert "1.png" in problem


def test_where_no_face_is_left_the_reason_is_said_and_no_index_stays(tmp_path):
    with pytest.raises(DataError, match=r"no face was written to .*: 1 photographs without a face"):
        cut_faces([photograph(tmp_path / "in")], tmp_path / "out", Detector(), size=SIDE)
    assert not (tmp_path / "out" / "index.csv").exists()


def test_faces_that_were_cut_before_are_not_mixed_with_new_ones(tmp_path):
    given = [photograph(tmp_path / "in")]
    cut_faces(given, tmp_path / "out", Detector((5, 10)), size=SIDE)
    with pytest.raises(DataError, match=r"index\.csv exists"):
        cut_faces(given, tmp_path / "out", Detector((5, 10)), size=SIDE)


def test_the_command_finds_the_face_of_a_public_domain_photograph(tmp_path):
    data = pytest.importorskip("skimage.data")
    (tmp_path / "in").mkdir()
    Image.fromarray(data.astronaut()[:256, 96:352]).save(tmp_path / "in" / "astronaut.png")
    (tmp_path / "in" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    words = ["data", "align", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--size", "64"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 3
    assert "torn.jpg" in result.output
    assert [row["file"] for row in rows(tmp_path / "out")] == ["astronaut-face1.png"]
    assert read_image(tmp_path / "out" / "astronaut-face1.png").size == (64, 64)
