import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from faceprior.benchmark import run as run_module
from faceprior.benchmark import sets
from faceprior.benchmark.config import load_benchmark, read_method, split_methods
from faceprior.benchmark.datasets import FaceSet, choose_faces, nose_offset, open_faces
from faceprior.benchmark.memory import PeakMemory
from faceprior.benchmark.metrics import COSTS, METRICS, FaceSamples, MeterOptions, Meters
from faceprior.benchmark.results import Results
from faceprior.benchmark.run import Benchmark, noise_seed
from faceprior.benchmark.summary import summarise
from faceprior.cli.app import app
from faceprior.degradations import bicubic_downscale
from faceprior.errors import DataError, DeviceError, FacePriorError, ImageError, OptionError, WeightsError
from faceprior.evaluation.arcface import ArcFaceEmbedder, IResNet
from faceprior.evaluation.intervals import bootstrap
from faceprior.evaluation.metrics import psnr
from faceprior.faces import DetectedFace, load_detector
from faceprior.images import read_image, to_tensor
from faceprior.methods import find_preset
from faceprior.pipeline import FacePriorPipeline, face_prior
from faceprior.priors import save_prior
from faceprior.priors.card import FFHQ_TEMPLATE, TIGHT_TEMPLATE
from tiny_faces import pack_faces, smooth_picture

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def prior(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "prior"
    save_prior(tiny.gaussian_prior(), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(prior):
    return FacePriorPipeline.from_pretrained(prior, corrector=None)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return pack_faces(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        Image.fromarray(smooth_picture(index)).save(folder / f"face-{index}.png")
    return folder


def save(path, index=0, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_picture(index, side)).save(path)


def make_config(folder, **options):
    usual = {
        "data": [str(folder)],
        "methods": ["bicubic", {"name": "dpi", "steps": 2, "label": "dpi"}],
        "scales": [4.0],
    }
    return load_benchmark(None, {**usual, "batch_size": 2, **options})


def changed(config, **options):
    return config.model_copy(update=options)


def make_benchmark(pipeline, config, output):
    found = open_faces(config.data, config.dataset)
    faces = FaceSet(found.name, choose_faces(found.faces, config.faces, config.subset))
    return Benchmark(pipeline, config, faces, output)


def table(rows):
    """Rows without what a clock and the system tell."""
    return [{name: value for name, value in row.items() if name not in COSTS or name == "nfe"} for row in rows]


# --- the run


@pytest.fixture(scope="module")
def uninterrupted(pipeline, pictures, tmp_path_factory):
    config = make_config(pictures, seeds=[0, 1], samples=2)
    return config, make_benchmark(pipeline, config, tmp_path_factory.mktemp("whole")).run()


@pytest.mark.parametrize("fits", [1, 0])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(pipeline, pictures, tmp_path, monkeypatch, fits):
    run = make_benchmark(pipeline, make_config(pictures, batch_size=4), tmp_path)
    expected = table(make_benchmark(pipeline, make_config(pictures, batch_size=4), tmp_path / "small").run())
    original, asked = face_prior.sample_batches, []

    def small(batches, *arguments, **options):
        asked.append(len(batches))
        if len(batches) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(batches, *arguments, **options)

    monkeypatch.setattr(face_prior, "sample_batches", small)
    monkeypatch.setattr(run.pipeline, "_fitting", {})
    notices = []
    if fits:
        assert table(run.run(on_notice=notices.append)) == expected
    else:
        with pytest.raises(DeviceError, match=r"one face does not fit .* choose another --device or --dtype"):
            run.run(on_notice=notices.append)
    assert asked[:2] == [3, 1]
    assert set(notices) == {"3 faces at once do not fit into the memory of cpu; going on with 1"}


class Killed(BaseException):
    pass


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 42))
def test_a_run_that_is_killed_anywhere_and_started_again_gives_the_same_table(
    uninterrupted, pipeline, tmp_path_factory, after
):
    config, expected = uninterrupted
    output = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        left = iter(range(after))  # of 42 pictures, 12 parts and the table

        def dying(write):
            def wrapped(*arguments):
                if next(left, None) is None:
                    raise Killed
                write(*arguments)

            return wrapped

        patch.setattr(run_module, "write_png", dying(run_module.write_png))
        patch.setattr(Results, "_write", dying(Results._write))
        with pytest.raises(Killed):
            make_benchmark(pipeline, config, output).run()
    before = [row for row in Results(output).rows.values() if row["sample"]]
    restored = []
    with pytest.MonkeyPatch.context() as patch:
        restore = FacePriorPipeline.restore

        def counting(self, faces, generators, samples, *rest, **options):
            restored.append(len(faces) * samples)
            return restore(self, faces, generators, samples, *rest, **options)

        patch.setattr(FacePriorPipeline, "restore", counting)
        rows = make_benchmark(pipeline, config, output).run()
    assert table(rows) == table(expected)
    assert sum(restored) == sum(row["sample"] > 0 for row in expected) - len(before)
    assert table(Results(output).rows.values()) == table(expected)
    assert list((output / "parts").iterdir()) == []


def test_nothing_is_restored_or_counted_twice_and_new_work_is_added(uninterrupted, pipeline, pictures, tmp_path):
    config, _ = uninterrupted
    make_benchmark(pipeline, changed(config, seeds=[0]), tmp_path).run()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
    rows = make_benchmark(pipeline, config, tmp_path).run()
    assert len({row["id"] for row in rows}) == len(rows) == 3 * 2 * (2 + 3)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert len(Results(tmp_path).rows) == len(rows)


def test_a_row_says_all_that_is_needed_to_make_its_picture_again(uninterrupted, pipeline, pictures):
    _, rows = uninterrupted
    row = next(row for row in rows if row["method"] == "dpi" and row["seed"] == 1 and row["sample"] == 2)
    truth = to_tensor(read_image(pictures / row["face"]))
    assert row["noise_seed"] == noise_seed(row["face_sha256"], 1)
    generator = torch.Generator().manual_seed(row["noise_seed"])
    small = bicubic_downscale(truth[None], round(row["resolution"] / row["scale"]))[0]
    options = json.loads(row["options"])
    preset = find_preset(row["method_name"]).with_options(**options)
    own = pipeline.restore([small], [generator], row["samples"], preset, 1)[0].images
    assert row["psnr"] == pytest.approx(float(psnr(own[1:], truth[None])[0]))
    assert len(row["prior_sha256"]) == 64
    assert row["nfe"] == 2


def test_results_depend_neither_on_the_order_nor_on_the_number_of_faces(uninterrupted, pipeline, pictures, tmp_path):
    config, expected = uninterrupted
    for index in (1, 2):
        Image.fromarray(smooth_picture(index)).save(tmp_path / f"face-{index}.png")
    rows = make_benchmark(pipeline, changed(config, data=[str(tmp_path)], batch_size=1), tmp_path / "out").run()
    psnr_of = {row["id"]: row["psnr"] for row in expected}
    assert len(rows) == 2 * 2 * (2 + 3)
    assert all(psnr_of[row["id"]] == row["psnr"] for row in rows)


def test_whole_batches_are_said_in_the_row_and_are_other_results(pipeline, pictures, tmp_path):
    found = [
        make_benchmark(pipeline, make_config(pictures, whole_batches=whole), tmp_path).run()
        for whole in (False, True)
    ]
    assert [{row["whole_batches"] for row in rows} for rows in found] == [{False}, {True}]
    assert not {row["id"] for row in found[0]} & {row["id"] for row in found[1]}
    means = [np.mean([row["psnr"] for row in rows]) for rows in found]
    assert means[0] == pytest.approx(means[1], abs=0.05)


def test_a_face_that_fails_is_a_row_with_its_error_until_it_can_be_read(pipeline, pictures, tmp_path):
    for index in range(2):
        save(tmp_path / "faces" / f"face-{index}.png", index)
    (tmp_path / "faces" / "face-1.png").write_bytes(b"not a picture")
    config = make_config(tmp_path / "faces")
    rows = make_benchmark(pipeline, config, tmp_path / "out").run()
    failed = [row for row in rows if row["error"] is not None]
    assert {(row["face"], row["method"]) for row in failed} == {("face-1.png", "bicubic"), ("face-1.png", "dpi")}
    assert "not a picture" in failed[0]["error"]
    assert summarise(rows, ["bicubic", "dpi"], "bicubic")[0].failed == 1
    save(tmp_path / "faces" / "face-1.png", 1)
    rows = make_benchmark(pipeline, config, tmp_path / "out").run()
    assert [row["error"] for row in Results(tmp_path / "out").rows.values()] == [None] * 4


def test_a_figure_that_can_be_measured_later_is_added_without_restoring_again(
    pipeline, pictures, tmp_path, monkeypatch
):
    config = make_config(pictures, metrics=["psnr"])
    make_benchmark(pipeline, config, tmp_path).run()
    monkeypatch.setattr(FacePriorPipeline, "restore", None)
    rows = make_benchmark(pipeline, changed(config, metrics=["psnr", "ssim"]), tmp_path).run()
    assert all(0 < row["ssim"] <= 1 and row["psnr"] > 0 for row in rows)


def test_faces_that_are_bad_already_have_no_truth_and_no_figures_against_it(pipeline, pictures, tmp_path):
    rows = make_benchmark(pipeline, make_config(pictures, degradations=["none"]), tmp_path).run()
    assert all(row["psnr"] is None and row["truth"] is None and row["lr_consistency"] > 0 for row in rows)


def test_a_damaged_table_is_an_error_that_names_it(pipeline, pictures, tmp_path):
    (tmp_path / "results.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"results\.parquet is damaged"):
        make_benchmark(pipeline, make_config(pictures), tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a process")
def test_peak_memory_is_that_of_the_work_alone():
    def peak(megabytes):
        memory = PeakMemory(CPU)
        torch.ones(250_000 * megabytes)
        return memory.megabytes()

    first, large, small = peak(1), peak(200), peak(1)
    assert large > first + 150
    assert small < large - 100


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["nope"]}, "nope"),
        ({"methods": [{"steps": 3}]}, "name"),
        ({"methods": ["dpi,steps=many"]}, "whole number"),
        ({"methods": ["dpi,speed=3"]}, "no option speed"),
        ({"methods": ["dpi", "default"]}, "same method"),
        ({"methods": "dpi,dpi"}, "each once"),
        ({"split": "test"}, "split"),
        ({"scales": [1.0]}, "scales.0 is 1.0"),
        ({"scales": []}, "at least one"),
        ({"seeds": "0,-1"}, "seeds.1"),
        ({"degradations": ["rain"]}, "rain"),
        ({"degradations": ["noise-5"]}, r"noise-SIGMA, a number of \[0, 1\]"),
        ({"dataset": "imagenet"}, "celeba"),
        ({"samples": 0}, "samples"),
        ({"metrics": "psnr,speed"}, "metric speed is not known; choose psnr, "),
        ({"identity_threshold": 2.0}, "identity_threshold"),
    ],
)
def test_wrong_options_are_named(pictures, options, message):
    with pytest.raises(OptionError, match=message):
        make_config(pictures, **options)


def test_a_method_is_named_with_its_options_in_yaml_and_on_the_command_line():
    label, preset = read_method("dpi,steps=7,crt=never,label=dpi-no-corrector")
    assert (label, preset) == read_method({"name": "dpi", "label": "dpi-no-corrector", "steps": 7, "crt": "never"})
    assert (label, preset.sampling.steps, preset.options.crt) == ("dpi-no-corrector", 7, "never")
    assert read_method("ddnm,steps=5")[0] == "ddnm steps=5"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "paper").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_paper_loads_and_flags_win(path):
    config = load_benchmark(path, {"data": ["shards"], "prior": "faces-128"})
    assert (config.data, config.prior) == (["shards"], "faces-128")
    assert f"--config {path.relative_to(ROOT)}" in path.read_text(encoding="utf-8")
    assert (config.baseline or "dpi") in config.chosen_methods(["bicubic"])


def test_methods_on_the_command_line_are_split_at_commas_but_keep_their_options():
    text = "default,dpi,tau=0.1,label=early, corrector"
    assert split_methods(text) == ["default", "dpi,tau=0.1,label=early", "corrector"]
    config = load_benchmark(None, {"methods": "default,dpi,tau=0.1", "scales": "4,8,16", "seeds": "0"})
    assert (list(config.chosen_methods()), config.scales) == (["default", "dpi tau=0.1"], [4.0, 8.0, 16.0])


def test_references_come_first_unless_they_are_named():
    config = load_benchmark(None, {"methods": "dpi,bicubic,label=enlarged"})
    assert list(config.chosen_methods(["bicubic"])) == ["dpi", "enlarged"]
    assert list(load_benchmark(None, {"methods": "dpi"}).chosen_methods(["bicubic"])) == ["bicubic", "dpi"]


# --- data


def layout(root, dataset):
    """A tiny copy of a published dataset."""
    if dataset == "celeba":
        points = " ".join(str(round(v * 32)) for point in TIGHT_TEMPLATE for v in point)
        for index in range(3):
            save(root / "Img" / "img_align_celeba" / f"00000{index}.jpg", index)
        names = " ".join(
            f"{point}_{axis}" for point in ("lefteye", "righteye", "nose", "left", "right") for axis in "xy"
        )
        lines = [f"00000{index}.jpg {points}" for index in range(3)]
        (root / "Anno").mkdir()
        (root / "Anno" / "list_landmarks_align_celeba.txt").write_text("\n".join(["3", names, *lines]))
        (root / "Anno" / "list_attr_celeba.txt").write_text("3\nEyeglasses Male\n000001.jpg 1 -1\n000002.jpg -1 1\n")
        (root / "Eval").mkdir()
        (root / "Eval" / "list_eval_partition.txt").write_text("000000.jpg 0\n000001.jpg 2\n000002.jpg 2\n")
        return ["000001.jpg", "000002.jpg"]
    places = {
        "ffhq": ["images1024x1024/00000/00000.png", "images1024x1024/00000/00001.png"],
        "lfw": ["lfw_cropped_faces/Aaron_Eckhart_0001_00.png"],
        "webphoto": ["WebPhoto-Test/00000_00.png"],
        "wider": ["WIDER-Test/0000.png"],
    }[dataset]
    for index, place in enumerate(places):
        save(root / place, index)
    return places


@pytest.mark.parametrize("dataset", ["celeba", "ffhq", "lfw", "webphoto", "wider"])
def test_published_layouts_are_recognised_and_others_refused(dataset, tmp_path):
    expected = layout(tmp_path / "copy", dataset)
    found = open_faces([tmp_path / "copy"], dataset)
    assert [face.name for face in found.faces] == expected
    assert len(found.faces[0].landmarks) == 5
    assert found.faces[0].picture(TIGHT_TEMPLATE, 24).shape == (3, 24, 24)
    save(tmp_path / "other" / "face.png")
    with pytest.raises(DataError, match="not laid out as"):
        open_faces([tmp_path / "other"], dataset)


def test_attributes_of_celeba_choose_faces(tmp_path):
    layout(tmp_path, "celeba")
    faces = open_faces([tmp_path], "celeba").faces
    assert [face.name for face in choose_faces(faces, subset="Eyeglasses=1")] == ["000001.jpg"]


def test_faces_of_the_priors_own_alignment_are_left_as_they_are(tmp_path):
    layout(tmp_path, "ffhq")
    face = open_faces([tmp_path], "ffhq").faces[0]
    assert torch.equal(face.picture(FFHQ_TEMPLATE, 24), to_tensor(face.read()))
    assert torch.equal(face.picture((), 24), to_tensor(face.read()))


def test_faces_of_lfw_itself_are_found_by_name(tmp_path):
    save(tmp_path / "lfw" / "Aaron_Eckhart" / "Aaron_Eckhart_0001.jpg")
    save(tmp_path / "lfw" / "Aaron_Eckhart" / "notes.jpg")
    faces = open_faces([tmp_path], "lfw").faces
    assert [face.name for face in faces] == ["lfw/Aaron_Eckhart/Aaron_Eckhart_0001.jpg"]
    with pytest.raises(FacePriorError, match="no face"):
        faces[0].picture(TIGHT_TEMPLATE, 32)


def test_a_packed_set_is_taken_whatever_the_dataset_is_and_its_labels_choose_faces(packed):
    found = open_faces([packed], "celeba")
    press = choose_faces(found.faces, subset="source=press")
    assert press
    assert all(face.name.startswith("press") for face in press)
    assert choose_faces(found.faces, 2) == [found.faces[0], found.faces[len(found.faces) // 2]]
    with pytest.raises(OptionError, match="portraits, press"):
        choose_faces(found.faces, subset="source=nope")
    with pytest.raises(OptionError, match="LABEL=VALUE"):
        choose_faces(found.faces, subset="nope")


def test_faces_of_extreme_pose_are_chosen_by_how_far_the_nose_stands_off(pictures, monkeypatch):
    noses = iter((16.5, 20.8, 13.0))

    def look(photo):
        return [DetectedFace((0, 0, 32, 32), ((8, 10), (24, 10), (next(noses), 18)), 1.0)]

    monkeypatch.setattr("faceprior.benchmark.datasets.load_detector", lambda: look)
    chosen = choose_faces(open_faces([pictures]).faces, subset="extreme-pose")
    assert [face.name for face in chosen] == ["face-1.png"]


def test_a_prior_whose_card_asks_for_less_texture_is_restored_anew(pipeline, pictures, tmp_path, monkeypatch):
    config = make_config(pictures)
    ids = [{row["id"] for row in make_benchmark(pipeline, config, tmp_path).run()}]
    monkeypatch.setattr(pipeline.prior, "card", replace(pipeline.prior.card, texture=0.5))
    ids.append({row["id"] for row in make_benchmark(pipeline, config, tmp_path).run()})
    assert ids[0].isdisjoint(ids[1])


def test_a_portrait_from_the_front_is_no_extreme_pose_and_a_photograph_without_a_face_is_named(tmp_path):
    from skimage.data import astronaut

    (tmp_path / "lfw" / "Eileen_Collins").mkdir(parents=True)
    for number, picture in enumerate((Image.fromarray(astronaut()), Image.new("RGB", (64, 64))), 1):
        picture.save(tmp_path / "lfw" / "Eileen_Collins" / f"Eileen_Collins_000{number}.jpg", quality=95)
    found, blank = open_faces([tmp_path], "lfw").faces
    (face,) = load_detector()(found.read())
    assert nose_offset(face.landmarks) < 0.2
    with pytest.raises(ImageError, match=r"_0002\.jpg: no face is found in it"):
        blank.read()


def test_folders_that_hold_no_faces_or_twice_the_same_name_are_refused(tmp_path, pictures):
    with pytest.raises(DataError, match="no faces were named"):
        open_faces([])
    with pytest.raises(DataError, match="holds no pictures"):
        open_faces([tmp_path])
    with pytest.raises(DataError, match="is not a folder"):
        open_faces([tmp_path / "nothing"])
    with pytest.raises(DataError, match="have the name of another"):
        open_faces([pictures, pictures])


# --- metrics


@pytest.fixture
def options():
    return MeterOptions(TIGHT_TEMPLATE, 64, CPU)


def random_face(rng, count=2, side=64):
    images = torch.rand(count, 3, side, side, generator=rng) * 2 - 1
    return FaceSamples(images, images[0], bicubic_downscale(images[:1], 16)[0])


def test_metrics_that_cannot_be_measured_are_named_with_what_to_install(options):
    meters = Meters([], options)
    assert {"lpips_alex", "lpips_vgg", "musiq", "brisque"} <= {*meters.missing, *meters.names}
    assert "NIQE needs 192 pixels a side; these faces have 64" in meters.missing.pop("niqe")
    for name, reason in meters.missing.items():
        assert "pip install " in reason, name


def test_only_the_metrics_that_were_asked_for_are_measured(options, rng):
    (first, _second) = Meters(["psnr", "spread"], options)(random_face(rng))
    assert list(first) == ["psnr", "spread"]
    assert first["psnr"] == 120


class Alexnet(nn.Module):
    """torchvision's `alexnet().features` with random weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        widths = (
            (3, 64, 11, 4, 2),
            (64, 192, 5, 1, 2),
            (192, 384, 3, 1, 1),
            (384, 256, 3, 1, 1),
            (256, 256, 3, 1, 1),
        )
        layers = []
        for index, (inputs, outputs, kernel, stride, padding) in enumerate(widths):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
            if index in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2))
        self.features = nn.Sequential(*layers)


def test_lpips_is_loaded_from_torchvisions_network_and_torchmetrics_heads(options, rng, monkeypatch):
    models = types.SimpleNamespace(
        alexnet=lambda weights: Alexnet(), AlexNet_Weights=types.SimpleNamespace(DEFAULT="imagenet")
    )
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", True)
    first, second = Meters(["lpips_alex"], options)(random_face(rng))
    assert first["lpips_alex"] == pytest.approx(0, abs=1e-6)
    assert second["lpips_alex"] > 0.01

    def offline(weights):
        raise OSError("no network")

    models.alexnet = offline
    with pytest.raises(FacePriorError, match=r"ImageNet weights of alex.*no network.*TORCH_HOME"):
        METRICS["lpips_alex"].open(options)


def test_musiq_comes_from_pyiqa(options, rng, monkeypatch):
    def create_metric(name, device):
        assert name == "musiq"
        return lambda images: images.mean((1, 2, 3))[:, None]

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    meters = Meters(["musiq"], options)
    face = random_face(rng)
    values = [row["musiq"] for row in meters(face)]
    assert values == pytest.approx(((face.images + 1) / 2).mean((1, 2, 3)).tolist())

    def offline(name, device):
        raise RuntimeError("no download")

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", offline)
    assert "no download" in Meters(["musiq"], options).missing["musiq"]


class Inception(nn.Module):
    """Stands for torch-fidelity's network: mean colours of quarters."""

    def __init__(self, name, layers):
        super().__init__()
        assert layers == ["2048"]

    def forward(self, images):
        assert images.dtype == torch.uint8
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


@pytest.fixture
def inception(monkeypatch):
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Inception)  # imports it, without the stub
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.SimpleNamespace())


def test_fid_and_kid_are_computed_from_the_features(inception, rng):
    features = sets.inception_features(CPU)
    real, fake = (features(iter(torch.rand(40, 3, 32, 32, generator=rng) ** power * 2 - 1)) for power in (1, 2))
    assert fake.shape == (40, 12)
    kid = sets.kid(fake, real)
    assert kid > sets.kid(real, real) + 1
    assert kid == sets.kid(fake, real)
    assert kid == pytest.approx(published_kid(fake, real), rel=0.02)
    assert sets.frechet_distance(fake, real) > sets.frechet_distance(real, real) + 0.1


def published_kid(features, reference):
    """Of all pictures at once: × 1000 the unbiased squared MMD of the kernel (x·y/d + 1)³."""
    kernel = [(a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((features,) * 2, (reference,) * 2, (features, reference))]
    count = len(features)
    same = sum((own.sum() - own.trace()) / (count * (count - 1)) for own in kernel[:2])
    return 1000 * float(same - 2 * kernel[2].mean())


def test_arcface_is_loaded_from_weights_whatever_its_depth_and_widths(tmp_path, options, rng):
    torch.manual_seed(0)
    network = IResNet((1, 2, 1, 1), (4, 4, 8, 8), embedding=6).eval()
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, tmp_path / "backbone.pth")
    chosen = replace(options, arcface=str(tmp_path / "backbone.pth"), identity_threshold=0.99)
    face = random_face(rng)
    meters = Meters(["identity", "same_person"], chosen)
    embeddings = meters.embed(face.images)
    assert embeddings.shape == (2, 6)
    first, second = meters(replace(face, embeddings=embeddings, true_embedding=embeddings[:1]))
    assert (first["same_person"], first["identity"]) == (1, pytest.approx(1))
    assert second["identity"] < 1
    assert (replace(options, arcface="x").same_person, options.same_person) == (0.32, 0.91)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="is no IResNet"):
        ArcFaceEmbedder(tmp_path / "other.pth", CPU)
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(WeightsError, match="nothing in it was run"):
        ArcFaceEmbedder(tmp_path / "text.pth", CPU)


def test_published_arcface_has_the_parameters_of_iresnet_50():
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in IResNet().parameters())
    assert parameters == 43_590_848


def test_regions_and_octaves_are_measured_where_there_are_any(options, rng):
    names = ["psnr_eyes", "psnr_mouth", "texture_4", "texture_8", "texture_64", "grid"]
    meters = Meters(names, options)
    assert meters.names == ("psnr_eyes", "psnr_mouth", "texture_4", "texture_8", "grid")  # 32 cycles fit into 64
    face = random_face(rng)
    truth, other = meters(face)
    assert (truth["psnr_eyes"], truth["texture_8"]) == (120, 0)
    assert 0 < other["psnr_eyes"] != other["psnr_mouth"] > 0
    assert "template" in Meters(["psnr_skin"], replace(options, template=())).missing["psnr_skin"]


def test_the_mean_of_several_samples_is_measured_like_a_sample(uninterrupted, pictures):
    _, rows = uninterrupted
    assert {row["method"] for row in rows} == {"bicubic", "dpi", "dpi, mean of 2"}
    mean = next(row for row in rows if row["method"] == "dpi, mean of 2")
    samples = [row for row in rows if row["method"] == "dpi" and row["noise_seed"] == mean["noise_seed"]]
    assert mean["psnr"] > min(row["psnr"] for row in samples)
    assert (mean["spread"], mean["nfe"]) == (None, 4)
    assert all(row["spread"] > 0 for row in samples)


# --- summary and report


def row(face, method, value, seed=0, sample=1, **more):
    usual = dict.fromkeys(METRICS)
    known = {"face": face, "method": method, "psnr": value, "seed": seed, "sample": sample, "error": None}
    return {
        **usual,
        "degradation": "bicubic",
        "scale": 4.0,
        "truth": None,
        "embedding": None,
        "labels": None,
        **known,
        **more,
    }


def test_the_bootstrap_finds_the_interval_of_a_known_case():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = bootstrap(values.tolist())
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap([1.5]) == bootstrap([1.5])
    assert (bootstrap([1.5]).low, bootstrap([1.5]).high) == (1.5, 1.5)


def test_faces_count_once_however_many_seeds_and_samples_they_have():
    rows = [row("a", "m", 10.0, seed) for seed in range(3)] + [row("b", "m", 20.0)]
    (summary,) = summarise(rows, ["m"], "m")
    assert summary.figures["psnr"].mean == 15
    assert (summary.figures["psnr"].faces, summary.faces) == (2, 2)


def test_differences_are_paired_by_face():
    rng = np.random.default_rng(0)
    hard = rng.normal(20, 5, 50)
    rows = [row(f"{i}", "base", value) for i, value in enumerate(hard)]
    rows += [row(f"{i}", "better", value + 0.5 + 0.01 * rng.normal()) for i, value in enumerate(hard)]
    rows += [row("alone", "better", 1000.0)]
    base, better = summarise(rows, ["base", "better"], "base")
    assert base.differences == {}
    found = better.differences["psnr"]
    assert (found.faces, found.mean) == (50, pytest.approx(0.5, abs=0.01))
    assert 0.48 < found.low < found.high < 0.52


def test_faces_are_grouped_by_their_labels():
    rows = [row(f"{i}", "m", float(i), labels=json.dumps({"source": "press" if i < 3 else "film"})) for i in range(4)]
    whole, film, press = summarise(rows, ["m"], "m", by=["source"])
    assert (whole.case, film.case, press.case) == (
        "×4 bicubic",
        "×4 bicubic, source film",
        "×4 bicubic, source press",
    )
    assert [(own.faces, own.figures["psnr"].mean) for own in (whole, film, press)] == [(4, 1.5), (1, 3), (3, 1)]
    with pytest.raises(OptionError, match="there are source"):
        summarise(rows, ["m"], "m", by=["age"])


def faceprior(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command_writes_a_report_that_needs_nothing_else(prior, pictures, tmp_path, inception):
    usual = ["benchmark", "--data", pictures, "--prior", prior, "--corrector", "none", "--dtype", "float32"]
    usual += ["--methods", "dpi,steps=2,label=<dpi>", "--scales", 4, "--output", tmp_path]
    result = faceprior(*usual, "--samples", 2, "--set", "title=Tiny & small", "--degradations", "noise-0.1")
    assert result.exit_code == 0, result.output
    assert "lpips_alex" in result.output
    assert "pip install pyiqa 'torchmetrics[image]'" in result.output
    assert "no template" in result.output  # identity
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Tiny &amp; small" in page
    assert "&lt;dpi&gt;" in page
    for link in ("http:", "https:", "<link", "<script", "url("):
        assert link not in page
    assert page.count("src=") == page.count('src="data:image/')
    assert page.count("data:image/png") == 1  # the plots
    assert page.count("data:image/webp") == 3 * 3 * 3
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["missing"]["lpips_vgg"]
    bicubic, dpi, mean = summary["summary"]
    assert (bicubic["method"], dpi["method"], mean["method"]) == ("bicubic", "<dpi>", "<dpi>, mean of 2")
    assert bicubic["figures"]["fid"]["mean"] >= 0
    assert mean["figures"]["nfe"]["mean"] == 2 * dpi["figures"]["nfe"]["mean"]
    assert dpi["figures"]["psnr"]["faces"] == 3
    assert dpi["differences"]["psnr"]["mean"] == pytest.approx(
        dpi["figures"]["psnr"]["mean"] - bicubic["figures"]["psnr"]["mean"]
    )


def test_the_command_reads_yaml_and_tells_what_failed(prior, tmp_path):
    save(tmp_path / "faces" / "good.png")
    (tmp_path / "faces" / "bad.png").write_bytes(b"bad")
    config = {"data": [str(tmp_path / "faces")], "prior": str(prior), "corrector": "none", "methods": ["bicubic"]}
    (tmp_path / "small.yaml").write_text(json.dumps({**config, "scales": [4], "metrics": ["psnr"]}))
    usual = ("benchmark", "--config", tmp_path / "small.yaml", "--output", tmp_path / "out", "--dtype", "float32")
    result = faceprior(*usual)
    assert result.exit_code == 3, result.output
    assert "bad.png" in result.output
    assert (tmp_path / "out" / "report.html").is_file()
    assert "unknown option speed" in faceprior(*usual, "--config", write(tmp_path / "x.yaml", "speed: 3")).output
    inside = faceprior(*usual, "--output", tmp_path / "faces" / "out")
    assert inside.exit_code == 2
    assert "inside the folder of faces" in inside.output
    result = faceprior(*usual, "--metrics", "speed")
    assert result.exit_code == 2
    assert "metric speed is not known" in result.output


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_pyarrow_that_is_missing_is_named(pipeline, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(FacePriorError, match=r"faceprior\[research\]"):
        make_benchmark(pipeline, make_config(pictures), tmp_path)
