import csv
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import faceprior.evaluation.identity
from faceprior.cli.app import app
from faceprior.corrector import save_corrector
from faceprior.errors import OptionError
from faceprior.evaluation.figures import Case, Mean, Summary
from faceprior.evaluation.regions import REGIONS, face_regions
from faceprior.images import resize, to_uint8
from faceprior.methods import find_preset
from faceprior.pipeline import FacePriorPipeline
from faceprior.pipeline.held_out import Damage, evaluate_held_out
from faceprior.priors import save_prior
from faceprior.priors.card import TIGHT_TEMPLATE
from faceprior.studies.corrector import study_corrector
from faceprior.studies.held_out import HeldOut, Measured
from faceprior.studies.speed import SOLVERS, speed_settings
from faceprior.studies.stride import corrected_strides, study_stride
from faceprior.studies.tables import draw_lines
from faceprior.studies.tau import INPUTS, START, STEPS, study_tau
from tiny_faces import pack_faces, splits

FACES, SAMPLES = 3, 2


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_faces(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    """Two priors and two correctors, of strides 2 and 4, as folders."""
    root = tmp_path_factory.mktemp("weights")
    for name, prior in (("one", tiny.gaussian_prior()), ("two", tiny.epsilon_prior())):
        prior.card = replace(prior.card, template=TIGHT_TEMPLATE)
        save_prior(prior, root / name)
    save_prior(tiny.gaussian_prior(), root / "unaligned")
    for stride in (2, 4):
        save_corrector(tiny.corrector(stride=stride, seed=stride), root / f"corrector-{stride}")
    return root


@pytest.fixture(scope="module")
def pipeline(weights):
    return FacePriorPipeline.from_pretrained(weights / "one", corrector=weights / "corrector-2")


class MeanColours:
    """Stands for the face embedder: the mean colour of each quarter."""

    def __call__(self, images, template):
        assert template == TIGHT_TEMPLATE
        return torch.nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1) + 2


@pytest.fixture(scope="module")
def held_out(packed):
    val = splits(packed)[1]
    return HeldOut(val.batch(val.spread(FACES)), SAMPLES, embedder=MeanColours())


@pytest.fixture
def run(packed, weights, monkeypatch):
    """Run a command on the tiny faces; returns what it printed."""
    monkeypatch.setattr(faceprior.evaluation.identity, "FaceEmbedder", MeanColours)

    def run(*arguments, expect=0):
        usual = ["--data", packed, "--faces", FACES, "--samples", SAMPLES, "--dtype", "float32", "--seed", 3]
        result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *usual)])
        assert result.exit_code == expect, result.output
        return result.output

    return run


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_a_plot(path):
    with Image.open(path) as plot:
        assert min(plot.size) > 300
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn


def case_of(row):
    return row["degradation"], float(row["scale"]), row["estimate"], row["corrector"]


FIGURES = ("psnr", "ssim", "lr_consistency", "identity")


def assert_the_rows_are_those_of_evaluate(rows, folder):
    summary = json.loads((folder / "summary.json").read_text())["summary"]
    expected = {case_of(row): row for row in summary}
    assert {case_of(row) for row in rows} == set(expected)
    for row in rows:
        own = expected[case_of(row)]
        for figure in FIGURES:
            found = (float(row[figure]), float(row[f"{figure}_ci95"]))
            assert found == pytest.approx((own[figure]["mean"], own[figure]["ci95"])), (case_of(row), figure)
        assert float(row["frechet"]) == pytest.approx(own["frechet"])


# regions of a face


def test_every_landmark_lies_in_its_region_and_no_pixel_in_two():
    side = 128
    regions = face_regions(TIGHT_TEMPLATE, side)
    assert tuple(regions) == REGIONS
    homes = ("eyes", "eyes", None, "mouth", "mouth")
    for (x, y), home in zip(TIGHT_TEMPLATE, homes, strict=True):
        inside = [name for name, mask in regions.items() if mask[int(y * side), int(x * side)]]
        assert inside == ([home] if home else [])
    assert torch.stack(list(regions.values())).sum(0).max() == 1
    cheek, chin, bridge, brow, corner = (0.25, 0.55), (0.5, 0.92), (0.5, 0.33), (0.285, 0.22), (0.02, 0.02)
    skin = [bool(regions["skin"][int(y * side), int(x * side)]) for x, y in (cheek, chin, bridge, brow, corner)]
    assert skin == [True, True, True, False, False]


def test_regions_of_a_symmetric_template_are_symmetric():
    for mask in face_regions(TIGHT_TEMPLATE, 96).values():
        assert torch.equal(mask, mask.flip(-1))


def test_regions_turn_with_the_template_and_keep_their_share_at_any_resolution():
    upright = face_regions(TIGHT_TEMPLATE, 128)
    turned = face_regions(tuple((1 - y, x) for x, y in TIGHT_TEMPLATE), 128)
    fine = face_regions(TIGHT_TEMPLATE, 512)
    half = face_regions(tuple((0.25 + x / 2, 0.25 + y / 2) for x, y in TIGHT_TEMPLATE), 256)
    for name, mask in upright.items():
        assert torch.equal(turned[name], mask.rot90(-1))
        assert mask.float().mean().item() == pytest.approx(fine[name].float().mean().item(), rel=0.02)
        assert torch.equal(half[name][64:192, 64:192], mask)


def test_regions_without_a_template_are_refused():
    with pytest.raises(OptionError, match="template"):
        face_regions((), 128)


def test_the_psnr_of_a_region_is_that_of_its_pixels(pipeline, held_out):
    regions = face_regions(TIGHT_TEMPLATE, 32)
    damage, preset = Damage("bicubic", 8), find_preset("default").with_options(steps=1)
    evaluation = evaluate_held_out(pipeline, held_out.faces, [damage], preset, samples=1, regions=regions)
    large = resize(torch.stack([damage.apply(face, 0) for face in held_out.faces]), 32).clamp(-1, 1)
    errors = (to_uint8(large).double() - to_uint8(held_out.faces).double()).square()
    bicubic, *others = evaluation.summarise()
    for name, mask in regions.items():
        expected = 10 * (255**2 / errors[..., mask].mean((1, 2))).log10()
        rows = [row for row in evaluation.rows if row.case == bicubic.case]
        assert [row.regions[name] for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)
        assert bicubic.means[f"psnr_{name}"].mean == pytest.approx(expected.mean().item(), abs=1e-4)
        assert all(f"psnr_{name}" in other.means for other in others)


# settings compared face by face


def test_a_lead_is_the_mean_difference_with_its_own_interval():
    summary = Summary(Case("bicubic", 8, "mean"), 4, {}, None)
    one, other = (Measured({}, summary, {"psnr": values}) for values in ([20.0, 25, 30, 36], [19.0, 24, 29, 34]))
    assert one.lead(other, "psnr") == Mean(1.25, pytest.approx(1.96 * 0.5 / math.sqrt(4)))
    assert other.lead(one, "psnr").mean == -1.25
    assert one.lead(other, "identity") is None


def test_a_plot_has_a_line_for_each_setting_and_estimate_over_evenly_spaced_values():
    def row(stride, corrector, estimate, value):
        return {"stride": stride, "corrector": corrector, "estimate": estimate, "psnr": value, "psnr_ci95": 0.5}

    rows = [row(8, "with", "mean", 3.0), row(1, "without", "mean", 1.0), row(8, "without", "mean", 2.0)]
    rows += [row(1, "without", "sample", None), row(2, "without", "sample", 4.0)]
    axes = Figure().add_subplot()
    draw_lines(axes, rows, "stride", "psnr", ("corrector",))
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert {label: line.get_xydata().tolist() for label, line in lines.items()} == {
        "with corrector, mean": [[2, 3]],
        "without corrector, mean": [[0, 1], [2, 2]],
        "without corrector, sample": [[1, 4]],
    }
    colors = [line.get_color() for line in lines.values()]
    assert colors[0] != colors[1] == colors[2]
    assert [line.get_linestyle() for line in lines.values()] == ["--", "--", "-"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "8"]
    assert not any(container.has_yerr for container in axes.containers)
    with_intervals = Figure().add_subplot()
    draw_lines(with_intervals, rows, "stride", "psnr", ("corrector",), intervals=True)
    assert all(container.has_yerr for container in with_intervals.containers)


# τ


def test_the_study_of_tau_has_the_figures_that_evaluate_finds(run, weights, tmp_path):
    chosen = ("--prior", weights / "one", "--corrector", weights / "corrector-2")
    output = run("study", "tau", "--output", tmp_path, "--tau", 0.3, "--tau", 0, "--tau", 0.3, *chosen)
    rows = read(tmp_path / "tau.csv")
    assert [(row["input"], row["tau"]) for row in rows[::3]] == [
        (name, tau) for name in ("mild", "medium", "heavy") for tau in ("0.0", "0.3")
    ]
    given = ("--degradation", "gfpgan", "--scale", 8)
    run(
        "evaluate",
        "--output",
        tmp_path,
        "--option",
        "tau=0.3",
        "--option",
        f"start={START}",
        "--option",
        f"steps={STEPS}",
        *given,
        *chosen,
    )
    medium = [row for row in rows if (row["input"], row["tau"]) == ("medium", "0.3")]
    assert_the_rows_are_those_of_evaluate(medium, tmp_path)
    assert_a_plot(tmp_path / "tau.png")
    assert output.count("×16 codeformer") == output.count("×4 bicubic") == 1
    assert output.count("bicubic") == 1 + 3  # the mild input, and a row an input
    marks = {"best": "* ", "tied": "= ", "": ""}
    for row in (row for row in rows if row["estimate"] != "bicubic"):
        assert f" {marks[row['psnr_place']]}{float(row['psnr']):.2f} " in output


def test_the_best_tau_is_marked_for_every_input_estimate_and_figure(pipeline, held_out, tmp_path):
    # with levels 0.05 apart, of which the lowest is free, τ = 0.05 is 0 again
    rows = study_tau(pipeline, held_out, tmp_path, (0.0, 0.05, 0.4))
    assert all(row[f"{figure}_place"] == "" for row in rows for figure in FIGURES if row["estimate"] == "bicubic")
    for name in INPUTS:
        for estimate in ("sample", "mean"):
            own = [row for row in rows if (row["input"], row["estimate"]) == (name, estimate)]
            for figure in FIGURES:
                zero, same, late = (row[f"{figure}_place"] for row in own)
                best = max(own, key=lambda row: row[figure])
                assert best[f"{figure}_place"] == "best"
                assert [zero, same, late].count("best") == 1
                if zero == "best":
                    assert same == "tied"
                else:
                    assert zero == same
    places = [row[f"{figure}_place"] for row in rows if row["estimate"] != "bicubic" for figure in FIGURES]
    assert "" in places  # some τ is worse beyond doubt


def test_the_seed_the_samples_and_the_faces_change_the_study(pipeline, held_out, tmp_path):
    def figure(chosen):
        rows = study_tau(pipeline, chosen, tmp_path, (0.1,))
        return [row["psnr"] for row in rows if row["estimate"] == "mean"]

    base = figure(held_out)
    for changed in ({"seed": 1}, {"samples": 1}, {"faces": held_out.faces[:2]}):
        assert figure(replace(held_out, **changed)) != pytest.approx(base, abs=0.01), changed
    done = []
    assert figure(held_out.reporting(done.append)) == base
    assert sum(done) == FACES * len(INPUTS)


# the stride


def test_a_corrector_is_tried_where_its_stride_fits(weights, held_out, tmp_path):
    for own, fitting in ((2, [2, 4, 8]), (4, [4, 8])):
        pipeline = FacePriorPipeline.from_pretrained(weights / "one", corrector=weights / f"corrector-{own}")
        assert corrected_strides(pipeline) == fitting
        one = replace(held_out, samples=1)
        rows = study_stride(pipeline, one, tmp_path, Damage("bicubic", 8))
        used = {
            use: [row["stride"] for row in rows if (row["corrector"], row["estimate"]) == (use, "sample")]
            for use in ("with", "without")
        }
        assert used == {"with": fitting, "without": [1, 2, 4, 8]}
    assert corrected_strides(pipeline.without_corrector()) == []


def test_the_study_of_the_stride_has_the_figures_that_evaluate_finds(run, weights, tmp_path):
    chosen = ("--prior", weights / "one", "--corrector", weights / "corrector-2", "--scale", 4)
    output = run("study", "stride", "--output", tmp_path, *chosen)
    rows = read(tmp_path / "stride.csv")
    run("evaluate", "--output", tmp_path, "--option", "stride=4", "--without-corrector", *chosen)
    assert_the_rows_are_those_of_evaluate([row for row in rows if row["stride"] == "4"], tmp_path)
    assert_a_plot(tmp_path / "stride.png")
    for region in REGIONS:
        values = [float(row[f"psnr_{region}"]) for row in rows]
        assert len(set(values)) > len(values) / 2
        assert f"{values[-1]:.2f}" in output


def test_the_stride_of_a_prior_without_a_template_is_a_usage_error(run, weights, tmp_path):
    output = run("study", "stride", "--output", tmp_path, "--prior", weights / "unaligned", expect=2)
    assert "template" in output
    assert not list(tmp_path.iterdir())


# the corrector


def test_the_study_of_the_corrector_has_the_figures_that_evaluate_finds(run, weights, tmp_path):
    names, given = [str(weights / name) for name in ("one", "two")], ("--scale", 8, "--scale", 4)
    chosen = ("--corrector", weights / "corrector-2", *given)
    output = run("study", "corrector", *names, "--output", tmp_path, *chosen)
    rows = read(tmp_path / "corrector.csv")
    for name in names:
        run("evaluate", "--output", tmp_path, "--without-corrector", "--prior", name, *chosen)
        assert_the_rows_are_those_of_evaluate([row for row in rows if row["prior"] in ("", name)], tmp_path)
    assert len(rows) == 2 * (1 + 2 * 4)  # scales × (bicubic, priors × estimates with and without)
    assert_a_plot(tmp_path / "corrector.png")
    assert output.count("×8 bicubic") == 1


def test_the_gain_is_that_of_the_rows_with_the_corrector_over_those_without(pipeline, held_out, tmp_path):
    rows = study_corrector({"one": pipeline}, held_out, tmp_path, (8.0,))
    for estimate in ("sample", "mean"):
        own = {row["corrector"]: row for row in rows if row["estimate"] == estimate}
        for figure in FIGURES:
            gain = own["with"][figure] - own["without"][figure]
            assert own["with"][f"{figure}_gain"] == pytest.approx(gain, abs=1e-9)
            assert own["with"][f"{figure}_gain_ci95"] > 0
            assert own["without"][f"{figure}_gain"] is None
    assert any(abs(row["psnr_gain"] or 0) > 0.01 for row in rows)


def test_priors_with_different_correctors_or_none_are_refused(run, weights, pipeline, held_out, tmp_path):
    other = FacePriorPipeline.from_pretrained(weights / "two", corrector=weights / "corrector-4")
    for second in (other, other.without_corrector()):
        with pytest.raises(OptionError, match="--corrector"):
            study_corrector({"one": pipeline, "two": second}, held_out, tmp_path)
    assert "no corrector" in run(
        "study", "corrector", weights / "one", "--corrector", "none", "-o", tmp_path, expect=2
    )


def test_identity_that_cannot_be_measured_stays_empty(run, weights, tmp_path):
    chosen = ("--corrector", weights / "corrector-2", "--scale", 8, "--output", tmp_path)
    output = run("study", "corrector", weights / "one", weights / "unaligned", *chosen)
    assert "no template" in output
    rows = read(tmp_path / "corrector.csv")
    assert {row["identity"] for row in rows} == {row["identity_gain"] for row in rows} == {""}
    assert all(float(row["psnr"]) > 0 for row in rows)
    assert_a_plot(tmp_path / "corrector.png")


# speed


def test_the_study_of_speed_has_the_figures_that_evaluate_finds(run, weights, tmp_path):
    chosen = ("--prior", weights / "one", "--corrector", weights / "corrector-2", "--scale", 8)
    grid = ("--steps", 3, "--steps", 2, "--solver", "ddim", "--solver", "dpmpp-2m", "--start", 0.2, "--start", 0.4)
    output = run("study", "speed", "--output", tmp_path, *grid, *chosen)
    rows = read(tmp_path / "speed.csv")
    default = find_preset("default").sampling
    expected = [(f"{default.start}", default.solver, f"{default.steps}")]
    expected += [(start, solver, steps) for start in ("0.2", "0.4") for solver in SOLVERS[:2] for steps in ("2", "3")]
    assert [(row["start"], row["solver"], row["steps"]) for row in rows[::3]] == expected
    run(
        "evaluate",
        "--output",
        tmp_path,
        *("--option", "start=0.4", "--option", "solver=dpmpp-2m", "--option", "steps=2"),
        *chosen,
    )
    own = [row for row in rows if (row["start"], row["solver"], row["steps"]) == ("0.4", "dpmpp-2m", "2")]
    assert_the_rows_are_those_of_evaluate(own, tmp_path)
    assert_a_plot(tmp_path / "speed.png")
    assert output.count("×8 bicubic") == 1
    for row, first in zip(rows[3:], rows[:3] * len(expected), strict=False):
        gain = float(row["psnr"]) - float(first["psnr"])
        assert float(row["psnr_gain"]) == pytest.approx(gain, abs=1e-9)
    assert {row["psnr_gain"] for row in rows[:3]} == {""}


def test_a_setting_that_is_the_default_is_measured_once(pipeline):
    default = find_preset("default").sampling
    settings = speed_settings(pipeline, (default.steps, 4, 4), (default.solver,), (default.start,))
    assert [preset.sampling.steps for preset in settings] == [default.steps, 4]


# errors


@pytest.mark.parametrize("study", ["tau", "stride", "corrector", "speed"])
def test_without_matplotlib_a_study_says_so_before_any_work(study, packed, weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = tmp_path / "study"
    own = [weights / "one"] if study == "corrector" else ["--prior", weights / "one"]
    arguments = ["study", study, *own, "--data", packed, "--output", output]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "pip install 'faceprior[research]'" in result.output
    assert not output.exists()


def test_a_value_out_of_range_is_a_usage_error(run, weights, tmp_path):
    chosen = ("--prior", weights / "one", "--output", tmp_path)
    assert "--tau" in run("study", "tau", "--tau", 1.5, *chosen, expect=2)
    assert "--scale" in run("study", "stride", "--scale", 1, *chosen, expect=2)
    assert "steps is 50" in run("study", "speed", "--steps", 50, "--start", 0.05, *chosen, expect=2)
