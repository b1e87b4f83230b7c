"""Every script of benchmarks/ runs at toy size and prints its table."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from benchmarks import detection, gallery, growth, memory, mutants, rivals, speed, start_up
from benchmarks.common import ProcessRun, run_faceprior, run_python
from PIL import Image

from faceprior import FacePriorPipeline
from faceprior.priors.card import TIGHT_TEMPLATE


def cells(output):
    """Rows of the Markdown tables, as lists of cells."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if "|" in line]


def test_speed_counts_what_the_networks_do(capsys):
    speed.main("random:32", "dpi,steps=2", "1,2", "float32", "cpu", 8.0, 0.01)
    one, two = cells(capsys.readouterr().out)[-2:]
    assert (one[0], two[0]) == ("dpi steps=2, float32, batch 1", "dpi steps=2, float32, batch 2")
    assert (one[1], one[5]) == ("2", two[5])
    assert 0 < float(one[2]) < 60
    assert 20 < float(one[4].strip("%")) <= 100


def test_speed_goes_on_with_the_next_method_when_a_batch_does_not_fit(capsys, monkeypatch):
    def measure(pipeline, preset, batch, *_):
        if batch > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return map(str, range(8))

    monkeypatch.setattr(speed, "measure", measure)
    sizes = speed.sizes
    assert list(sizes("auto", torch.device("cpu"))) == [1]
    monkeypatch.setattr(speed, "sizes", lambda batches, _: sizes(batches, torch.device("cuda")))
    speed.main("random:32", "dpi,steps=2,bicubic", "auto", "float32", "cpu", 8.0, 0.01)
    output = capsys.readouterr().out
    assert [row[0].split(", ")[-1] for row in cells(output)[-4:]] == ["batch 1", "batch 2"] * 2
    assert output.count("4 faces at once do not fit into the memory of cpu") == 2


def test_memory_grows_with_the_batch(capsys):
    memory.main("random:64", "dpi", "1,16", "float32", "cpu", 1)
    one, many = cells(capsys.readouterr().out)[-2:]
    assert one[:4] == ["random:64", "dpi", "float32", "1"]
    assert one[6] == many[6]
    assert float(many[7]) > float(one[7]) + 20


def test_growth_fits_a_power_to_sides(capsys):
    growth.main(batches="", folders="", sides="16,32,48", steps=1)
    output = capsys.readouterr().out
    assert [row[0] for row in cells(output)[-3:]] == ["16", "32", "48"]
    assert "Time grows with the power" in output


def test_growth_restores_folders_of_every_size(capsys, monkeypatch):
    seen = []

    def restore(*arguments):
        seen.append(len(list(Path(arguments[1]).iterdir())))
        return ProcessRun(1.0, 1.0, 1.0)

    monkeypatch.setattr(growth, "run_faceprior", restore)
    growth.main(batches="", sides="", folders="2,3,4")
    assert seen == [2, 3, 4]


def test_start_up_measures_every_task(capsys, monkeypatch):
    monkeypatch.setattr(start_up, "run_python", lambda _: ProcessRun(1.0, 2.0, 3.0))
    monkeypatch.setattr(start_up, "run_faceprior", lambda *_: ProcessRun(4.0, 5.0, 6.0))
    start_up.main(runs=1)
    assert cells(capsys.readouterr().out)[-1] == ["first face of faceprior restore", "4", "5", "6"]


def test_the_score_of_mutants_counts_those_that_a_test_noticed(tmp_path, capsys):
    with pytest.raises(typer.BadParameter, match="make mutants"):
        mutants.main(tmp_path)
    (tmp_path / "sampling").mkdir()
    for name, codes in (
        ("sampling/steps.py", [1, 1, 1, -24, 0, None]),
        ("paste.py", [33, 1, 1, 1]),
        ("errors.py", []),
    ):
        content = {"exit_code_by_key": dict(enumerate(codes))}
        (tmp_path / f"{name}.meta").write_text(json.dumps(content), encoding="utf-8")
    mutants.main(tmp_path, least=77)
    rows = cells(capsys.readouterr().out)
    assert rows[-3:] == [["paste.py", "4", "75"], [str(Path("sampling/steps.py")), "5", "80"], ["all", "9", "78"]]
    with pytest.raises(typer.Exit):
        mutants.main(tmp_path, least=78)


def test_the_fit_finds_the_exponent_beside_a_fixed_cost():
    sizes = [1, 2, 4, 8, 16]
    assert growth.fit(sizes, [3 + 0.5 * size**1.5 for size in sizes]) == pytest.approx(1.5, abs=0.011)
    assert growth.fit(sizes, [0.2 * size for size in sizes]) == pytest.approx(1.0, abs=0.011)


def test_a_program_of_its_own_tells_its_time_and_memory():
    plain, large = run_python(""), run_python("x = bytearray(300_000_000)")
    assert large.peak_mb > plain.peak_mb + 200
    assert plain.seconds > 0
    assert plain.cpu_seconds > 0
    with pytest.raises(RuntimeError, match="No such option"):
        run_faceprior("methods", "--nothing")


def test_the_arithmetic_of_a_convolution_is_counted_by_hand():

    image, kernels = torch.zeros(1, 4, 8, 8), torch.zeros(6, 4, 3, 3)
    assert speed.arithmetic(lambda: torch.conv2d(image, kernels, padding=1)) == 2 * 6 * 4 * 9 * 64


def test_the_gallery_shows_every_damage_and_its_restorations(tiny, tmp_path):
    pytest.importorskip("skimage")
    prior = tiny.gaussian_prior()
    prior.card = replace(prior.card, template=TIGHT_TEMPLATE)
    FacePriorPipeline(prior, tiny.corrector()).save_pretrained(tmp_path / "prior")
    gallery.main(tmp_path, str(tmp_path / "prior"))
    for name, rows in gallery.SHEETS.items():
        with Image.open(tmp_path / f"gallery-{name}.webp") as picture:
            width, height = picture.size
        assert (width // 200, height // 222) == (len(gallery.METHODS) + 3, len(rows))


def test_every_damage_of_the_gallery_damages_in_its_own_way():
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).resize((128, 128))
    damages = [damage for rows in gallery.SHEETS.values() for damage in rows.values()]
    seen = [np.asarray(damage(face).resize((128, 128))) for damage in damages]
    for number, one in enumerate(seen):
        assert np.abs(one - np.asarray(face, float)).mean() > 5
        assert all(np.abs(one - other.astype(float)).mean() > 2 for other in seen[:number])


def test_a_missing_rival_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(SystemExit, match="pip install 'deepinv"):
        rivals.main()


def test_detection_finds_the_face_and_several_cores_are_quicker(capsys):
    detection.main(cores=2, widths="400", runs=1)
    for name, found, alone, together in cells(capsys.readouterr().out)[-2:]:
        assert name.startswith("0.1 MP")
        assert found == "1"
        assert 0 < float(together) <= float(alone)
