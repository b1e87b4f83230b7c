import csv
import json
import sys
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from faceprior.cli.app import app
from faceprior.degradations import bicubic_downscale
from faceprior.errors import OptionError
from faceprior.evaluation import frechet_distance, lr_consistency, psnr, spread, ssim
from faceprior.evaluation.identity import identity
from faceprior.images import resize
from faceprior.methods import find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage, evaluate_held_out
from faceprior.priors import save_prior
from faceprior.priors.card import TIGHT_TEMPLATE
from faceprior.training.shards import pack
from tiny_faces import pack_faces, splits, write_faces


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_faces(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "prior"
    save_prior(tiny.gaussian_prior(), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return FacePriorPipeline.from_pretrained(folder, corrector=None)


@pytest.fixture(scope="module")
def faces(packed):
    return splits(packed)[1].batch([0, 1])


def measure(pipeline, faces, scale=4.0, steps=2, degradation="bicubic", **options):
    preset = find_preset("default").with_options(steps=steps)
    return evaluate_held_out(pipeline, faces, [Damage(degradation, scale)], preset, **options)


def figures_of(evaluation, estimate, figure="psnr"):
    return [getattr(row, figure) for row in evaluation.rows if row.case.estimate == estimate]


class MeanColours:
    """Stands for the face embedder: the mean colour of each quarter."""

    def __call__(self, images, template):
        assert len(template) == 5
        return torch.nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1) + 2


@pytest.fixture
def aligned(pipeline):
    return FacePriorPipeline(pipeline.unet, pipeline.scheduler, card=replace(pipeline.card, template=TIGHT_TEMPLATE))


def test_the_bicubic_rows_are_what_the_metrics_say_of_bicubic(pipeline, faces):
    evaluation = measure(pipeline, faces, samples=2)
    small = bicubic_downscale(faces, 8)
    large = resize(small, 32).clamp(-1, 1)
    for figure, expected in (
        ("psnr", psnr(large, faces)),
        ("ssim", ssim(large, faces)),
        ("lr_consistency", lr_consistency(large, small)),
    ):
        assert figures_of(evaluation, "bicubic", figure) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_row_is_what_the_pipeline_restores_with_the_faces_own_seed(pipeline, faces):
    evaluation = measure(pipeline, faces, samples=2, seed=5)
    preset = find_preset("default").with_options(steps=2)
    generator = torch.Generator().manual_seed(6)
    own = pipeline.restore(list(bicubic_downscale(faces[1:], 8)), [generator], 2, preset, 8)[0]
    expected = psnr(torch.stack([own[0], own.mean(0)]), faces[[1, 1]]).tolist()
    found = [figures_of(evaluation, "sample")[1], figures_of(evaluation, "mean")[1]]
    assert found == pytest.approx(expected, abs=0.02)


def test_several_samples_have_a_mean_which_is_not_the_first_of_them(pipeline, faces):
    one, three = measure(pipeline, faces, samples=1), measure(pipeline, faces, samples=3)
    assert not figures_of(one, "mean")
    assert figures_of(three, "sample") == pytest.approx(figures_of(one, "sample"), abs=0.02)
    assert figures_of(three, "mean") != pytest.approx(figures_of(three, "sample"), abs=0.02)


def test_scale_degradation_seed_and_steps_change_the_figures(pipeline, faces):
    base = figures_of(measure(pipeline, faces, samples=1), "sample")
    for options in ({"scale": 8.0}, {"degradation": "codeformer"}, {"seed": 1}, {"steps": 3}):
        found = figures_of(measure(pipeline, faces, **{"samples": 1, **options}), "sample")
        assert found != pytest.approx(base, abs=0.02), options


def test_the_batch_size_changes_no_more_than_the_last_bits(pipeline, faces):
    alone, together = (measure(pipeline, faces, samples=2, batch_size=size) for size in (1, 4))
    assert [row.face for row in together.rows] == [0, 1] * 3
    for estimate in ("bicubic", "sample", "mean"):
        assert figures_of(alone, estimate) == pytest.approx(figures_of(together, estimate), abs=0.02)


def test_identity_compares_the_embedding_of_a_result_with_that_of_its_own_face(aligned, faces):
    evaluation = measure(aligned, faces, samples=2, embedder=MeanColours())
    embed = MeanColours()
    large = resize(bicubic_downscale(faces, 8), 32).clamp(-1, 1)
    expected = identity(embed(large, TIGHT_TEMPLATE), embed(faces, TIGHT_TEMPLATE)).tolist()
    assert figures_of(evaluation, "bicubic", "identity") == pytest.approx(expected)
    bicubic, *_ = evaluation.summarise()
    assert bicubic.frechet == frechet_distance(embed(large, TIGHT_TEMPLATE), embed(faces, TIGHT_TEMPLATE))


def test_identity_without_a_template_is_refused(pipeline, faces):
    with pytest.raises(OptionError, match="template"):
        measure(pipeline, faces, samples=1, embedder=MeanColours())


def test_the_corrector_can_be_left_out_beside_it(folder, tiny, faces):
    corrector = tiny.corrector()
    bare = FacePriorPipeline.from_pretrained(folder, corrector=None)
    whole = FacePriorPipeline(
        bare.unet, bare.scheduler, corrector.network, card=bare.prior.card, corrector_card=corrector.card
    )
    done = []
    options = {"samples": 1, "steps": 4}
    evaluation = measure(whole, faces, without_corrector=True, on_faces=done.append, **options)
    assert sum(done) == 2 * len(faces)
    samples = [row for row in evaluation.rows if row.case.estimate == "sample"]
    without = [row.psnr for row in samples if row.case.corrector is False]
    with_it = [row.psnr for row in samples if row.case.corrector is True]
    assert without == figures_of(measure(bare, faces, **options), "sample")
    assert with_it == figures_of(measure(whole, faces, **options), "sample")
    assert with_it != pytest.approx(without, abs=0.001)
    assert len(figures_of(evaluation, "bicubic")) == len(faces)


def test_leaving_out_a_corrector_that_is_not_there_is_refused(pipeline, faces):
    with pytest.raises(OptionError, match="no corrector"):
        measure(pipeline, faces, samples=1, without_corrector=True)


def test_psnr_and_ssim_agree_with_their_definitions():
    a = torch.full((2, 3, 16, 16), 0.0)
    b = a.clone()
    b[1] += 0.2  # 25.5 of 255, rounded to 26 or 25
    assert torch.isinf(psnr(a, b)[0])
    difference = float(((b[1] + 1) * 127.5).round().mean() - ((a[1] + 1) * 127.5).round().mean())
    assert float(psnr(a, b)[1]) == pytest.approx(20 * torch.log10(torch.tensor(255 / difference)).item(), abs=1e-4)
    assert ssim(a, b)[0] == pytest.approx(1.0)
    assert ssim(a, b)[1] < 1.0


def test_spread_is_zero_where_samples_agree_and_half_the_range_at_most():
    samples = torch.zeros(4, 3, 8, 8)
    samples[:2, :, 0, 0], samples[2:, :, 0, 0] = -1, 1
    found = spread(samples)
    assert found[0, 0] == pytest.approx(0.5)
    assert found.flatten()[1:].abs().max() == 0


@pytest.fixture
def run(folder, packed):
    def run(*arguments):
        usual = ["evaluate", "--data", packed, "--prior", folder, "--corrector", "none"]
        usual += ["--faces", "4", "--samples", "2", "--option", "steps=2", "--dtype", "float32"]
        return CliRunner().invoke(app, [str(argument) for argument in (*usual, *arguments)])

    return run


def test_the_command_prints_every_condition_and_writes_a_row_a_face(run, packed, tmp_path):
    output = tmp_path / "figures" / "tiny"
    result = run("--scale", 4, "--scale", 8, "--degradation", "bicubic", "--degradation", "gfpgan", "-o", output)
    assert result.exit_code == 0, result.output
    assert "4 faces of" in result.stdout
    for condition in ("×4 bicubic", "×8 bicubic", "×4 gfpgan", "×8 gfpgan"):
        assert result.stdout.count(condition) == 1
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["preset"], summary["options"]["steps"], summary["corrector"]) == ("default", 2, None)
    assert len(summary["prior"]["sha256"]) == 64
    assert len(summary["summary"]) == 4 * 3
    with (output / "faces.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 * 4
    assert {row["face"] for row in rows} <= {face.name for face in splits(packed)[1].faces}
    own = [float(row["psnr"]) for row in rows if (row["scale"], row["degradation"], row["estimate"]) == CONDITION]
    found = next(
        row for row in summary["summary"] if (f"{row['scale']:g}", row["degradation"], row["estimate"]) == CONDITION
    )
    assert found["psnr"]["mean"] == pytest.approx(sum(own) / 4, abs=1e-4)
    assert f"{found['psnr']['mean']:.2f} ±{found['psnr']['ci95']:.2f}" in result.stdout


CONDITION = ("8", "gfpgan", "mean")


def test_the_command_measures_on_training_faces_when_asked(run, packed, tmp_path):
    assert run("--split", "train", "--output", tmp_path).exit_code == 0
    with (tmp_path / "faces.csv").open(newline="") as file:
        names = {row["face"] for row in csv.DictReader(file)}
    assert names <= {face.name for face in splits(packed)[0].faces}
    assert json.loads((tmp_path / "summary.json").read_text())["split"] == "train"


def test_the_command_groups_faces_by_their_labels(run, packed, tmp_path):
    result = run("--by", "source", "--by", "terms", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "by source" in result.stdout
    assert "by terms" in result.stdout
    groups = json.loads((tmp_path / "summary.json").read_text())["groups"]
    assert set(groups["source"]) <= {"portraits", "press"}
    assert sum(rows[0]["faces"] for rows in groups["terms"].values()) == 4


def test_a_label_named_like_a_figure_keeps_a_column_of_its_own(run, tmp_path):
    for folder in write_faces(tmp_path / "pictures"):
        rows = (folder / "index.csv").read_text().splitlines()
        (folder / "index.csv").write_text("\n".join([f"{rows[0]},scale", *(f"{row},0.5" for row in rows[1:])]))
    folders = sorted((tmp_path / "pictures").iterdir())
    pack(folders, tmp_path / "packed", size=32, held_out=0.5)
    result = run("--data", tmp_path / "packed", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    with (tmp_path / "faces.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["label_scale"], first["scale"]) == ("0.5", "8")


def test_a_label_that_no_face_has_is_a_usage_error_that_lists_them(run):
    result = run("--by", "age")
    assert result.exit_code == 2
    assert "there are source, terms" in result.output


def test_identity_that_cannot_be_measured_is_left_out_with_the_reason(run, monkeypatch):
    result = run()
    assert result.exit_code == 0
    assert "no template" in result.output
    monkeypatch.setitem(sys.modules, "dlib", None)
    result = run()
    assert result.exit_code == 0
    assert "pip install 'faceprior[research]'" in result.output
    assert "–" in result.stdout


def test_faces_of_another_size_than_the_priors_are_refused(run, tmp_path):
    pack(write_faces(tmp_path / "pictures"), tmp_path / "small", size=16, held_out=0.5)
    result = run("--data", tmp_path / "small")
    assert result.exit_code == 2
    assert "16 pixels" in result.output


def test_data_that_was_not_packed_is_a_usage_error(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "faceprior data pack" in result.output
