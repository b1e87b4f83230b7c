import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from faceprior.corrector import load_corrector
from faceprior.errors import OptionError, OutputError
from faceprior.networks import without_grid
from faceprior.priors.card import file_sha256
from faceprior.priors.gaussian import GaussianDenoiser, haar, inverse_haar, unfold
from faceprior.priors.residual_unet import GaussianResidualUNet
from faceprior.priors.store import load_prior
from faceprior.settings import load_settings
from faceprior.training import trainer
from faceprior.training.batches import Batches
from faceprior.training.config import CorrectorConfig, PriorConfig, TrainConfig
from faceprior.training.corrector import CorrectorTask
from faceprior.training.gaussian_fit import fit_gaussian, measure_error_std
from faceprior.training.prior import EVALUATION_SHARES, PriorTask
from faceprior.training.shards import pack
from faceprior.training.trainer import stratified_uniform, train
from tiny_faces import pack_faces, splits, write_faces

RESIDUAL_OPTIONS = {"rank": 4, "widths": [8, 16], "blocks": [1, 1]}
UNET_OPTIONS = {
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
CORRECTOR_OPTIONS = {"widths": [8, 16], "blocks": [1, 1]}
PAPER_OPTIONS = {
    "block_out_channels": [8, 16],
    "attention": [False, False],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
QUICK = {
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 2,
    "evaluate_every": 1000,
    "evaluate_faces": 2,
    "checkpoint_every": 1000,
    "mixed_precision": "no",
}
KINDS = ("gaussian-residual", "epsilon", "v_prediction", "corrector", "paper")


def make_config(kind, **options):
    options = {**QUICK, **options}
    if kind == "corrector":
        return CorrectorConfig(network_options=CORRECTOR_OPTIONS, scales=[2.0, 8.0], **options)
    if kind == "paper":
        options = {"sample_around": "condition", "alone": 0.0, "highest": 1.0, **options}
        return CorrectorConfig(network="paper", network_options=PAPER_OPTIONS, scales=[2.0, 8.0], **options)
    if kind == "gaussian-residual":
        return PriorConfig(network_options=RESIDUAL_OPTIONS, **options)
    options.setdefault("weighting", "min-snr")
    return PriorConfig(network="unet", network_options=UNET_OPTIONS, prediction_type=kind, **options)


def make_task(kind, data, start=None, **options):
    config = make_config(kind, **options)
    faces, held_out = splits(data, config.terms)
    return (CorrectorTask if kind in ("corrector", "paper") else PriorTask)(config, faces, held_out, start)


def run(kind, data, output, *, resume=False, on_step=lambda *_: None, start=None, **options):
    task = make_task(kind, data, start, **options)
    faces, _ = splits(data, task.config.terms)
    figures = train(task, task.config, faces, output, resume=resume, command="faceprior train", on_step=on_step)
    return task, figures


def examples(task, faces, seed=0):
    if task.example is None:
        return [faces]
    generator = torch.Generator().manual_seed(seed)
    made = [task.example(face, generator) for face in faces]
    return [torch.stack(pictures) for pictures in zip(*made, strict=True)]


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def weights_file(output):
    return next((output / "weights").rglob("*.safetensors"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return pack_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """One finished run of each kind: its task, its folder and its figures."""
    runs = {}
    for kind in ("gaussian-residual", "corrector"):
        output = tmp_path_factory.mktemp("finished") / kind
        runs[kind] = (*run(kind, data, output, steps=6, evaluate_every=3), output)
    return runs


# the loop


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_on_a_few_faces(kind, data, tmp_path):
    special = {
        "corrector": {"damaged": 0.0},
        "paper": {"damaged": 0.0, "highest": 0.0},
        "gaussian-residual": {"steps": 120},
    }
    options = {"learning_rate": 3e-3, "steps": 80, "batch_size": 8, "flip": 0.0, **special.get(kind, {})}
    run(kind, data, tmp_path, **options)
    values = losses(tmp_path)
    assert sum(values[-15:]) < 0.95 * sum(values[:15])


KILLED_AT, CHECKPOINT_EVERY = 5, 2


@pytest.mark.parametrize("kind", ["gaussian-residual", "corrector"])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(kind, data, tmp_path):
    options = {"steps": 8, "checkpoint_every": CHECKPOINT_EVERY, "evaluate_every": 3}
    run(kind, data, tmp_path / "whole", **options)
    script = f"""
        import os, signal, sys
        from pathlib import Path
        import torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_training import run
        torch.set_num_threads(1)

        def kill(step, *_):
            if step == {KILLED_AT}:
                os.kill(os.getpid(), signal.SIGKILL)

        run({kind!r}, Path({str(data)!r}), Path({str(tmp_path / "killed")!r}), on_step=kill, **{options!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.run(command, check=False, capture_output=True)  # noqa: S603
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    killed = tmp_path / "killed"
    assert len(losses(killed)) == KILLED_AT
    assert sorted(p.name for p in (killed / "checkpoints").glob("step-*")) == ["step-0000002", "step-0000004"]
    with (killed / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')  # as a kill in the middle of a line leaves it
    (killed / "checkpoints" / "partial").mkdir()  # and in the middle of a checkpoint
    run(kind, data, killed, resume=True, **options)
    assert losses(killed) == losses(tmp_path / "whole")
    assert file_sha256(weights_file(killed)) == file_sha256(weights_file(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(number, data, tmp_path):
    kind = "gaussian-residual"
    run(kind, data, tmp_path / "whole", steps=6)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(kind, data, tmp_path / "a", steps=6, on_step=lambda s, *_: s == 2 and os.kill(os.getpid(), number))
    assert signal.getsignal(number) is before
    stopped = len(losses(tmp_path / "a"))
    assert stopped < 6
    assert [p.name for p in (tmp_path / "a" / "checkpoints").iterdir()] == [f"step-{stopped:07d}"]
    run(kind, data, tmp_path / "a", steps=6, resume=True)
    assert losses(tmp_path / "a") == losses(tmp_path / "whole")
    assert file_sha256(weights_file(tmp_path / "a")) == file_sha256(weights_file(tmp_path / "whole"))


def test_losses_that_are_read_together_as_on_a_gpu_are_the_same(data, tmp_path, monkeypatch):
    told = []
    run("gaussian-residual", data, tmp_path / "one", steps=6, evaluate_every=5)
    monkeypatch.setitem(trainer._READ_TOGETHER, "cpu", 4)
    run("gaussian-residual", data, tmp_path / "four", steps=6, evaluate_every=5, on_step=lambda s, *_: told.append(s))
    assert losses(tmp_path / "four") == losses(tmp_path / "one")
    assert told == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_does_not_disturb_training(kind, data, tmp_path):
    run(kind, data, tmp_path / "often", evaluate_every=1)
    run(kind, data, tmp_path / "never", evaluate_every=1000)
    assert losses(tmp_path / "often") == losses(tmp_path / "never")
    assert file_sha256(weights_file(tmp_path / "often")) == file_sha256(weights_file(tmp_path / "never"))


def test_a_run_is_not_overwritten_without_resume(finished, data):
    _, _, output = finished["gaussian-residual"]
    before = losses(output)
    with pytest.raises(OutputError, match="step-0000006; add --resume"):
        run("gaussian-residual", data, output)
    assert losses(output) == before


def test_a_checkpoint_of_another_network_is_refused(finished, data):
    _, _, output = finished["gaussian-residual"]
    task = make_task("epsilon", data)
    with pytest.raises(OutputError, match="step-0000006 does not fit this network"):
        train(task, task.config, splits(data)[0], output, resume=True)


def test_only_the_newest_checkpoints_are_kept(data, tmp_path):
    run("gaussian-residual", data, tmp_path, steps=4, checkpoint_every=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-0000003", "step-0000004"]


def test_averaged_weights_are_what_is_exported(data, tmp_path):
    raw = []

    def note(*_):
        raw.append(task.network.unet.conv_in.weight.detach().clone())

    task = make_task("gaussian-residual", data, steps=6, ema_decay=0.3, learning_rate=1e-2)
    train(task, task.config, splits(data)[0], tmp_path, on_step=note)
    average = raw[0]
    for n, weights in enumerate(raw[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * weights
    exported = load_prior(tmp_path / "weights").network.unet.conv_in.weight
    assert torch.allclose(exported, average, atol=2e-4)
    assert not torch.allclose(exported, raw[-1], atol=2e-4)
    assert torch.equal(task.network.unet.conv_in.weight, raw[-1])


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"flip": 1.0}, {"balance": 1.0}, {"learning_rate": 1e-2}, {"batch_size": 6}]
)
def test_every_option_of_the_loop_changes_the_losses(changed, data, tmp_path):
    run("v_prediction", data, tmp_path / "a", flip=0.0)
    run("v_prediction", data, tmp_path / "b", **{"flip": 0.0, **changed})
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


@pytest.mark.parametrize("kind", ["gaussian-residual", "epsilon", "corrector"])
def test_bf16_trains_on_a_cpu(kind, data, tmp_path):
    run(kind, data, tmp_path / "half", mixed_precision="bf16")
    run(kind, data, tmp_path / "full", mixed_precision="no")
    half, full = losses(tmp_path / "half"), losses(tmp_path / "full")
    assert half != full
    assert half == pytest.approx(full, rel=0.1)
    assert all(p.dtype == torch.float32 for p in make_task(kind, data).network.parameters())


def test_a_run_stops_when_its_minutes_are_up_and_counts_them_over_resumes(data, tmp_path):
    _, figures = run("epsilon", data, tmp_path, steps=1000, minutes=0.02)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 1 < len(lines) < 1000
    assert lines[-2]["seconds"] < 2
    assert lines[-1]["held_out"] == figures  # it ends as every run does: evaluated, saved and exported
    assert run("epsilon", data, tmp_path, resume=True, steps=1000, minutes=0.02)[1] == {}
    run("epsilon", data, tmp_path, resume=True, steps=1000, minutes=0.04)
    more = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(more) > len(lines)
    assert more[len(lines)]["seconds"] >= lines[-1]["seconds"]
    assert more[-1]["seconds"] > lines[-1]["seconds"] + 0.5
    load_prior(tmp_path / "weights")


def test_a_resumed_run_takes_its_gaussian_from_the_checkpoint(data, tmp_path, monkeypatch):
    task, _ = run("gaussian-residual", data, tmp_path, steps=1)
    monkeypatch.setattr(PriorTask, "prepare", lambda _: pytest.fail("fitted again"))
    resumed, _ = run("gaussian-residual", data, tmp_path, steps=2, resume=True)
    assert torch.equal(resumed.network.gaussian.component_std, task.network.gaussian.component_std)
    assert torch.equal(resumed.network.error_std, task.network.error_std)
    assert task.network.error_std.std() > 0


def test_fp16_on_a_cpu_is_refused_with_what_to_do(data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(OptionError, match="fp16 needs a GPU; choose bf16 or no"):
        run("epsilon", data, tmp_path, mixed_precision="fp16")


@pytest.mark.parametrize("kind", ["gaussian-residual", "corrector"])
def test_workers_change_nothing(kind, data, tmp_path):
    for workers in (0, 2):
        run(kind, data, tmp_path / str(workers), workers=workers)
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_processes_share_the_batch_that_one_would_see(data):
    task = make_task("corrector", data, batch_size=6)
    faces, _ = splits(data)
    whole = Batches(faces, task.config, task.example)[3]
    parts = [Batches(faces, task.config, task.example, process, 3)[3] for process in range(3)]
    for pictures, *shares in zip(whole, *parts, strict=True):
        assert pictures.dtype == torch.uint8
        assert torch.equal(pictures, torch.cat(shares))
    target, bad = whole
    assert not torch.equal(target, bad)


def test_every_step_and_every_face_draws_anew(data):
    task = make_task("corrector", data, batch_size=4, damaged=1.0)
    faces, _ = splits(data)
    faces.faces = faces.faces[:1]  # the same face all over
    batches = Batches(faces, task.config, task.example)
    bad = torch.cat([batches[0][1], batches[1][1]])
    assert len({one.numpy().tobytes() for one in bad}) == len(bad)


def test_batches_are_made_while_a_step_computes(data):
    """A step that takes longer than the making of a batch never waits for one: they lie ready in other processes."""
    task = make_task("gaussian-residual", data, steps=20)
    made = torch.zeros(20).share_memory_()

    def example(face, _):
        made[int(made.sum())] = 1
        return (face,)

    coming = Batches(splits(data)[0], task.config.model_copy(update={"batch_size": 1}), example).from_step(
        0, 1, pinned=False
    )
    next(coming)
    deadline = time.monotonic() + 60
    while made.sum() < 3 and time.monotonic() < deadline:  # nobody asks for the next
        time.sleep(0.01)
    assert made.sum() >= 3


@pytest.mark.parametrize("kind", [pytest.param("gaussian-residual", marks=pytest.mark.slow), "corrector"])
def test_two_processes_share_a_batch_and_write_one_run(kind, data, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
            import faulthandler, os, signal, sys
            from pathlib import Path
            faulthandler.dump_traceback_later(120, exit=True)  # rather than hang
            import torch
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            from test_training import run
            torch.set_num_threads(1)
            data, output = Path({str(data)!r}), Path({str(tmp_path / "out")!r})
            options = dict(steps=6, checkpoint_every=2, evaluate_every=3, mixed_precision="bf16")
            resume = "--resume" in sys.argv

            def stop(step, *_):
                if step == 2 and not resume:  # in one process of the two
                    os.kill(os.getpid(), signal.SIGTERM)

            try:
                run({kind!r}, data, output, resume=resume, on_step=stop, **options)
            except KeyboardInterrupt:
                print("stopped", flush=True)
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533", script]
    stopped = subprocess.run(command, check=False, capture_output=True)  # noqa: S603
    assert stopped.stdout.decode().count("stopped") == 2, stopped.stderr.decode()
    assert len(losses(tmp_path / "out")) == 3
    resumed = subprocess.run([*command, "--resume"], check=False, capture_output=True)  # noqa: S603
    assert resumed.returncode == 0, resumed.stderr.decode()
    assert len(losses(tmp_path / "out")) == 6
    assert sorted(p.name for p in (tmp_path / "out" / "checkpoints").iterdir()) == ["step-0000004", "step-0000006"]
    (load_corrector if kind == "corrector" else load_prior)(tmp_path / "out" / "weights")


# what a run leaves


def test_a_run_leaves_config_log_events_and_sheets(finished):
    for kind, (task, figures, output) in finished.items():
        assert yaml.safe_load((output / "config.yaml").read_text()) == task.config.model_dump()
        assert list((output / "tensorboard").glob("events.out.tfevents.*"))
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "held_out" in line] == [3, 6]
        assert lines[-1]["held_out"] == figures
        size = (2 * 2 * 32, 6 * 32) if kind == "gaussian-residual" else (2 * 2 * 32, 4 * 32)
        for step in (3, 6):
            with Image.open(output / "sheets" / f"step-{step:07d}.png") as sheet:
                assert sheet.size == size


def test_held_out_figures_of_a_prior_have_ten_noise_levels(finished):
    _, figures, _ = finished["gaussian-residual"]
    levels = [name for name in figures if re.fullmatch(r"x0_psnr/0\.\d\dT", name)]
    assert levels == [f"x0_psnr/{share:.2f}T" for share in EVALUATION_SHARES]
    assert len(levels) == 10
    values = [figures[name] for name in levels]
    assert figures["x0_psnr/mean"] == pytest.approx(sum(values) / 10)
    assert values[0] > values[4] > values[9]


def test_held_out_figures_of_a_corrector_cover_scales_damage_and_noise(finished):
    _, figures, _ = finished["corrector"]
    assert len(figures) == 4 * 4
    assert {"psnr/x4", "psnr/damaged", "grid_psnr/x16/0.1T", "grid_psnr/damaged/0.4T"} <= set(figures)


@pytest.mark.parametrize(("kind", "load"), [("gaussian-residual", load_prior), ("corrector", load_corrector)])
def test_exported_weights_load_and_tell_how_they_were_made(kind, load, finished, data):
    task, figures, output = finished[kind]
    loaded = load(output / "weights")
    card = loaded.card
    assert card.kind == ("corrector" if kind == "corrector" else "prior")
    assert card.sha256 == file_sha256(weights_file(output))
    assert card.resolution == 32
    assert [(row["source"], row["terms"], row["licence"]) for row in card.data] == [
        ("portraits", "open", "licence of portraits"),
        ("press", "research", "licence of press"),
    ]
    assert sum(row["faces"] for row in card.data) == len(splits(data)[0])
    assert card.licence.startswith("research only")
    assert card.training["command"] == "faceprior train"
    assert card.training["steps"] == 6
    assert card.training["samples"] == 24
    assert card.training["config"] == task.config.model_dump()
    assert card.held_out == {name: round(value, 3) for name, value in figures.items()}


@pytest.mark.parametrize("kind", ["gaussian-residual", "corrector"])
def test_training_on_open_faces_only_frees_the_weights(kind, data, tmp_path):
    run(kind, data, tmp_path, terms=["open"], steps=1)
    card = json.loads((tmp_path / "weights" / "card.json").read_text())
    assert card["licence"] == "free: trained on openly licensed faces only"
    assert [row["source"] for row in card["data"]] == ["portraits"]


# starting from weights that exist


def test_a_prior_goes_on_from_the_weights_it_is_given(finished, data, tmp_path):
    _, _, output = finished["gaussian-residual"]
    start = load_prior(output / "weights").network.state_dict()
    task = make_task("gaussian-residual", data, output / "weights", seed=5)
    state = task.network.state_dict()
    assert all(torch.equal(state[name], start[name]) for name in start)
    train(task, task.config, splits(data)[0], tmp_path)
    moved = load_prior(tmp_path / "weights").network.state_dict()
    assert not torch.equal(moved["unet.conv_in.weight"], start["unet.conv_in.weight"])
    assert torch.equal(moved["gaussian.components"], start["gaussian.components"])


def test_a_corrector_goes_on_from_the_weights_it_is_given(finished, data, tmp_path):
    _, _, output = finished["corrector"]
    start = load_corrector(output / "weights").network.state_dict()
    task = make_task("corrector", data, output / "weights", seed=5)
    assert all(torch.equal(tensor, start[name]) for name, tensor in task.network.state_dict().items())
    train(task, task.config, splits(data)[0], tmp_path)
    assert not torch.equal(
        load_corrector(tmp_path / "weights").network.unet.conv_in.weight, start["unet.conv_in.weight"]
    )


def test_a_start_keeps_its_prediction_type_and_schedule(data, tmp_path):
    betas = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2}
    task = make_task("gaussian-residual", data)
    options = {**RESIDUAL_OPTIONS, **betas}
    task = PriorTask(task.config.model_copy(update={"network_options": options, "steps": 1}), *splits(data))
    assert len(task.prior.schedule) == 100
    train(task, task.config, splits(data)[0], tmp_path)
    again = make_task("v_prediction", data, tmp_path / "weights")
    assert again.prior.schedule.equals(task.prior.schedule)
    assert again.prior.card.prediction_type == "sample"
    assert again.prior.card.schedule["beta_end"] == 0.2


def test_a_correctors_card_has_its_own_schedule(data):
    config = make_config("corrector")
    config = config.model_copy(
        update={"network_options": {**CORRECTOR_OPTIONS, "num_train_timesteps": 100, "beta_end": 0.2}}
    )
    task = CorrectorTask(config, *splits(data))
    assert task.card.schedule["num_train_timesteps"] == len(task.network.schedule) == 100
    assert task.card.schedule["beta_end"] == 0.2


def test_a_start_of_another_resolution_is_refused(finished, tmp_path):
    pack(write_faces(tmp_path / "pictures"), tmp_path / "packed", size=16, held_out=0.34)
    for kind in finished:
        with pytest.raises(OptionError, match="is for 32×32 faces, the training set holds 16×16"):
            make_task(kind, tmp_path / "packed", finished[kind][2] / "weights")


def test_a_start_that_does_not_fit_the_weighting_is_refused(data, tmp_path):
    run("epsilon", data, tmp_path, steps=1)
    with pytest.raises(OptionError, match="weighting residual needs the network gaussian-residual"):
        make_task("gaussian-residual", data, tmp_path / "weights")


# weights of noise levels, steps


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("min-snr", lambda snr: snr.clamp(max=5)),
        ("p2", lambda snr: snr / (1 + snr)),
        ("plain", lambda snr: snr),
    ],
)
def test_weightings_are_the_documented_ones(weighting, expected, data):
    task = make_task("epsilon", data, weighting=weighting)
    t = torch.tensor([0, 10, 100, 300, 500, 999])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas_cumprod = torch.cumprod(1 - betas, 0)[t]
    snr = alphas_cumprod / (1 - alphas_cumprod)
    assert torch.allclose(task.weight(t).double(), expected(snr), rtol=1e-3)


def test_the_residual_weighting_makes_the_gaussian_estimate_cost_one(data):
    task = make_task("gaussian-residual", data)
    task.prepare()
    t = torch.tensor([0, 200, 999])
    assert torch.allclose(task.weight(t), task.network.error_std[t] ** -2)
    faces = task.faces.batch(range(len(task.faces))).repeat(8, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    loss = task.loss(task.network, examples(task, faces), generator)  # untrained: the estimate itself
    assert loss.item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction", "sample"])
def test_the_plain_weighting_is_the_squared_error_of_what_is_predicted(predicted, data):
    task = make_task(predicted, data, weighting="plain")
    faces = task.faces.batch(range(4))
    loss = task.loss(task.network, examples(task, faces), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    t = (stratified_uniform(4, generator) * 1000).long()  # low_noise_share = low_noise: t is uniform
    noise = torch.randn(faces.shape, generator=generator)
    output = task.network(task.prior.schedule.add_noise(faces, noise, t), t).sample
    level = task.prior.schedule.at(t)
    v = level.sqrt() * noise - (1 - level).sqrt() * faces
    target = {"epsilon": noise, "v_prediction": v, "sample": faces}[predicted]
    assert loss.item() == pytest.approx((output - target).square().mean().item(), rel=1e-3)


def test_an_untrained_corrector_costs_what_was_known_before(data):
    """Without a sample its answer is the bad face: one for the face, next to nothing for the sample's noise."""
    faces = splits(data)[0].batch(range(8))
    task = make_task("corrector", data, damaged=0.0, alone=1.0)
    loss = task.loss(task.network, examples(task, faces), torch.Generator().manual_seed(0))
    assert 0.5 < loss.item() < 1.5  # the floor takes a little off, the doubt adds a little


def test_a_sample_without_noise_is_the_answer_on_the_grid(data, rng):
    network = make_task("corrector", data).network
    faces, bad = torch.rand(2, 3, 32, 32, generator=rng), torch.rand(2, 3, 32, 32, generator=rng)
    found = network(network.schedule.at(torch.zeros(2).long()).sqrt() * faces, torch.zeros(2).long(), bad).x0
    torch.testing.assert_close(found[..., ::2, ::2], faces[..., ::2, ::2], atol=0.02, rtol=0)
    torch.testing.assert_close(
        found[..., 1::2, :], without_grid(bad)[..., 1::2, :]
    )  # untrained, it leaves the others as they are


def test_every_option_of_the_corrector_changes_its_loss(data):
    faces = splits(data)[0].batch(range(8))
    config = make_config("corrector", damaged=0.5)

    def loss(**changed):
        task = CorrectorTask(config.model_copy(update=changed), *splits(data))
        return task.loss(task.network, examples(task, faces), torch.Generator().manual_seed(0)).item()

    assert loss() == loss()
    for changed in (
        {"damaged": 0.0},
        {"scales": [4.0, 8.0]},
        {"alone": 0.5},
        {"highest": 0.3},
        {"framing": [0.9, 1.3]},
        {"sample_around": "condition"},
        {"network": "paper", "network_options": PAPER_OPTIONS},
    ):
        assert loss(**changed) != loss()


def test_samples_have_the_forward_marginal_around_the_face(data):
    task = make_task("corrector", data)
    faces = torch.full((1, 3, 32, 32), 0.5).expand(64, -1, -1, -1)
    sample = task.noised(faces, torch.full((64,), 500), torch.Generator().manual_seed(0))
    alphas_cumprod = task.network.schedule.alphas_cumprod[500].item()
    assert sample.mean().item() == pytest.approx(0.5 * alphas_cumprod**0.5, abs=0.02)
    assert sample.std().item() == pytest.approx((1 - alphas_cumprod) ** 0.5, rel=0.02)


@torch.no_grad()
def test_samples_around_the_truth_tell_the_corrector_more_than_those_around_the_condition(data, monkeypatch):
    """What the loss hands to the network: with `truth` the grid of x_t is the clean face's, else the bad one's."""
    faces = splits(data)[0].batch(range(4))
    for around, nearer in (("truth", 0), ("condition", 1)):
        task, seen = make_task("corrector", data, sample_around=around, highest=0.001, alone=0.0, damaged=0.0), []
        network = task.network
        network.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs))
        task.loss(network, examples(task, faces), torch.Generator().manual_seed(0))
        sample, t, bad = seen[0]
        clean = sample / network.schedule.at(t).sqrt()
        distances = [(clean - other).square().mean().item() for other in (faces, bad)]
        assert distances[nearer] < distances[1 - nearer] / 3


def test_levels_are_the_last_for_the_share_without_a_sample_and_uniform_below_the_highest(data):
    task = make_task("corrector", data, alone=0.25, highest=0.6)
    t = task.levels(4000, torch.Generator().manual_seed(0))
    assert (t == 999).float().mean().item() == pytest.approx(0.25, abs=0.001)
    sampled = t[t < 999]
    assert sampled.max() < 600
    assert sampled.float().mean().item() == pytest.approx(300, abs=2)


def test_stratified_draws_take_one_from_each_part():
    generator = torch.Generator().manual_seed(0)
    seen = torch.stack([stratified_uniform(8, generator) for _ in range(200)])
    assert torch.equal((seen.sort(1).values * 8).long(), torch.arange(8).expand(200, -1))
    assert seen.min() < 0.005
    assert seen.max() > 0.994
    assert not torch.equal(seen.sort(1).values, seen)


@pytest.mark.parametrize(("low", "share"), [(0.6, 0.6), (0.6, 0.9), (0.2, 0.5)])
def test_the_share_of_low_noise_levels_is_what_was_asked_for(data, monkeypatch, low, share):
    task = make_task("gaussian-residual", data, low_noise=low, low_noise_share=share)
    seen = []
    monkeypatch.setattr(task, "weight", lambda t: seen.append(t) or torch.ones(len(t)))
    faces = task.faces.batch([0, 1, 2, 3] * 10)
    for seed in range(10):
        task.loss(task.network, examples(task, faces), torch.Generator().manual_seed(seed))
    levels = torch.cat(seen) / 1000
    assert float((levels < low).float().mean()) == pytest.approx(share, abs=0.03)
    assert levels.max() > 0.95
    assert levels.min() < 0.05


def test_the_learning_rate_warms_up_holds_and_decays():
    config = TrainConfig(steps=100, warmup_steps=10, decay=0.2)
    factors = [config.learning_rate_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == pytest.approx([1.0] * 72)
    assert factors[90] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.05)
    assert TrainConfig(steps=100, warmup_steps=0).learning_rate_factor(99) == 1


def test_the_learning_rate_decays_by_whichever_limit_comes_first():
    config = TrainConfig(steps=100, warmup_steps=0, decay=0.5, minutes=2)
    assert config.learning_rate_factor(10, seconds=30) == 1
    assert config.learning_rate_factor(10, seconds=90) == pytest.approx(0.5)
    assert config.learning_rate_factor(80, seconds=60) == pytest.approx(0.4)
    assert config.learning_rate_factor(10, seconds=121) == 0


# options


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("network: unet\nsteps: 50\nbatch_size: 8\nlearning_rate: 3e-4\nterms: [open]\n")
    config = load_settings(PriorConfig, path, {"weighting": "p2", "steps": 70, "seed": None})
    assert (config.network, config.weighting, config.steps, config.batch_size) == ("unet", "p2", 70, 8)
    assert config.learning_rate == 3e-4
    assert config.terms == ["open"]
    assert config.seed == PriorConfig().seed
    assert load_settings(CorrectorConfig, None, {}) == CorrectorConfig()


def test_a_written_config_reads_back(tmp_path):
    config = make_config("corrector", seed=3)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config.model_dump()))
    assert load_settings(CorrectorConfig, tmp_path / "c.yaml", {}) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 5\n", r"c\.yaml: unknown option stepps; known are .*steps"),
        ("- steps\n", r"c\.yaml: is not a list of"),
        ("steps: [1\n", r"c\.yaml: is not valid YAML"),
        ("steps: many\n", r"c\.yaml: steps is 'many'; it must be a whole number"),
        ("steps: 2.5\n", r"c\.yaml: steps is 2\.5; it must be a whole number"),
        ("learning_rate: fast\n", r"c\.yaml: learning_rate is 'fast'; it must be a number"),
        ("compile: 3\n", r"c\.yaml: compile is 3; it must be true or false"),
    ],
)
def test_a_bad_file_is_named(text, message, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(OptionError, match=message):
        load_settings(PriorConfig, tmp_path / "c.yaml", {})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"none\.yaml: cannot be read"):
        load_settings(PriorConfig, tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (PriorConfig, "steps", 0),
        (PriorConfig, "batch_size", 0),
        (PriorConfig, "checkpoint_every", 0),
        (PriorConfig, "warmup_steps", -1),
        (PriorConfig, "weight_decay", -0.1),
        (PriorConfig, "seed", -1),
        (PriorConfig, "learning_rate", 0.0),
        (PriorConfig, "gradient_clip", 0.0),
        (PriorConfig, "flip", 1.5),
        (PriorConfig, "ema_decay", -0.1),
        (PriorConfig, "mixed_precision", "fp8"),
        (PriorConfig, "network", "vit"),
        (PriorConfig, "prediction_type", "x1"),
        (PriorConfig, "weighting", "none"),
        (CorrectorConfig, "scales", []),
        (CorrectorConfig, "scales", [0.5, 8.0]),
        (CorrectorConfig, "scales", [8.0, 4.0]),
        (CorrectorConfig, "framing", [1.2, 1.0]),
        (CorrectorConfig, "framing", [0.4, 1.0]),
        (CorrectorConfig, "damaged", 2.0),
        (CorrectorConfig, "alone", -0.1),
        (CorrectorConfig, "highest", 1.1),
        (CorrectorConfig, "network", "none"),
        (CorrectorConfig, "sample_around", "none"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(kind, option, value):
    with pytest.raises(OptionError, match=f"{option} is "):
        load_settings(kind, None, {option: value})


# the Gaussian


class GaussianFaces:
    """Samples of a known low-rank Gaussian, in place of packed faces."""

    def __init__(self, count, side=16, rank=3, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def randn(*shape):
            return torch.randn(shape, generator=generator)

        half, folded = side // 2, 3 * side // 2 * side // 4
        mean = 0.3 * torch.randn(1, 3, half, half, generator=torch.Generator().manual_seed(99))
        self.mean = (mean + mean.flip(-1)) / 2
        basis = torch.Generator().manual_seed(7)
        self.components = torch.stack(
            [torch.linalg.qr(torch.randn(folded, rank, generator=basis))[0].T for _ in range(2)]
        )
        self.std = torch.tensor([[4.0, 2.0, 1.0], [3.0, 1.5, 0.8]])
        self.remainder_std, self.detail_std = 0.05, 0.1
        scores = randn(2, count, rank) * self.std[:, None]
        halves = scores @ self.components + self.remainder_std * randn(2, count, folded)
        self.images = inverse_haar(unfold(halves, 3, half) + self.mean, self.detail_std * randn(count, 9, half, half))

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[list(indices)]


@pytest.fixture(scope="module")
def known():
    return GaussianFaces(3000)


@pytest.fixture(scope="module")
def fitted(known):
    torch.manual_seed(0)
    network = GaussianResidualUNet(sample_size=16, rank=3, widths=(8,), blocks=(1,))
    weights = torch.full((len(known),), 1 / len(known), dtype=torch.float64)
    fit_gaussian(network.gaussian, known, weights)
    measure_error_std(network, known, weights, samples=256)
    return network


def test_fitting_recovers_a_known_gaussian(known, fitted):
    gaussian = fitted.gaussian
    assert torch.allclose(gaussian.component_std, known.std, rtol=0.06)
    overlap = (gaussian.components @ known.components.mT).abs().diagonal(dim1=1, dim2=2)
    assert (overlap > 0.98).all()
    assert gaussian.remainder_std.mean().item() == pytest.approx(known.remainder_std, rel=0.1)
    assert gaussian.detail_std.mean().item() == pytest.approx(known.detail_std, rel=0.05)
    assert (gaussian.mean - known.mean[0]).abs().max() < 0.05


def test_components_are_orthonormal_and_the_mean_is_mirror_symmetric(fitted):
    gram = fitted.gaussian.components @ fitted.gaussian.components.mT
    assert torch.allclose(gram, torch.eye(3).expand(2, -1, -1), atol=1e-4)
    assert torch.allclose(fitted.gaussian.mean, fitted.gaussian.mean.flip(-1))
    assert torch.allclose(fitted.gaussian.detail_std, fitted.gaussian.detail_std.flip(-1))


def test_weights_decide_which_faces_count():
    faces = GaussianFaces(200)
    denoiser = GaussianDenoiser(16, 3)
    weights = torch.zeros(200)
    weights[:50] = 1 / 50
    fit_gaussian(denoiser, faces, weights)
    means, _ = haar(faces.images[:50])
    mean = means.mean(0)
    assert torch.allclose(denoiser.mean, (mean + mean.flip(-1)) / 2, atol=1e-5)


def test_fewer_faces_than_components_leave_the_others_empty():
    denoiser = GaussianDenoiser(16, 20)
    fit_gaussian(denoiser, GaussianFaces(5), torch.full((5,), 0.2))
    assert (denoiser.component_std[:, 5:] == 0).all()
    assert all(torch.isfinite(buffer).all() for buffer in denoiser.buffers())


def test_the_fitted_denoiser_beats_a_wiener_filter_per_pixel(known, fitted):
    fresh = GaussianFaces(200, seed=1).images
    mean, variance = known.images.mean(0), known.images.var(0)
    noise = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(2))
    shares = []
    for t in (100, 300, 500, 700):
        level = fitted.alphas_cumprod[t]
        x_t = level.sqrt() * fresh + (1 - level).sqrt() * noise
        gain = level.sqrt() * variance / (level * variance + 1 - level)
        per_pixel = mean + gain * (x_t - level.sqrt() * mean)
        ours = fitted.gaussian(x_t, level.expand(len(fresh), 1, 1, 1))
        shares.append(((ours - fresh).square().mean() / (per_pixel - fresh).square().mean()).item())
    assert max(shares) < 1
    assert min(shares) < 0.5


def test_the_measured_error_rises_with_noise_and_is_the_error(known, fitted):
    std = fitted.error_std
    assert (std[::50].diff() > 0).all()
    noise = torch.randn(known.images.shape, generator=torch.Generator().manual_seed(3))
    for t in (100, 333, 777, 999):  # at and between the measured steps
        level = fitted.alphas_cumprod[t].expand(len(known), 1, 1, 1)
        estimate = fitted.gaussian(level.sqrt() * known.images + (1 - level).sqrt() * noise, level)
        assert std[t].item() == pytest.approx((estimate - known.images).square().mean().sqrt().item(), rel=0.1)
