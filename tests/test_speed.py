"""`faceprior benchmark speed` and `growth`: what is counted is right; how long it takes is no test's business."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from faceprior.benchmark.speed.ceiling import Ceiling, count_flops, measure_ceiling
from faceprior.benchmark.speed.clock import HostClock, Spread, time_inside
from faceprior.benchmark.speed.config import Grid, SpeedConfig
from faceprior.benchmark.speed.growth import (
    GROWTH_FILE,
    PLOT_FILE,
    Point,
    fit,
    grow_faces,
    grow_side,
    grown,
    write_growth,
)
from faceprior.benchmark.speed.machine import this_machine
from faceprior.benchmark.speed.measure import Run, measure, summarise
from faceprior.benchmark.speed.process import run_command, run_statements
from faceprior.benchmark.speed.profiler import by_kind, kind_of, profile
from faceprior.benchmark.speed.rivals import Turn, settle
from faceprior.benchmark.speed.run import count_runs, run_speed
from faceprior.benchmark.speed.subjects import _paper_corrector, _paper_prior, load_subject, random_pipeline
from faceprior.cli.app import app
from faceprior.errors import FacePriorError, OptionError
from faceprior.methods import find_preset

SMALL = "random:16"


class FakeTime:
    """Seconds that pass only when someone lets them."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds

    def passes(self, seconds):
        self.seconds += seconds


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# --- clocks


def slow_network(now, forward_seconds, backward_seconds):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            now.passes(forward_seconds)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            now.passes(backward_seconds)
            return gradient

    class Network(nn.Module):
        def forward(self, x, t):
            return SimpleNamespace(sample=Slow.apply(x))

    return Network()


def test_only_the_time_inside_the_networks_is_counted_as_theirs():
    now = FakeTime()
    networks = {"prior": slow_network(now, 2, 0), "corrector": slow_network(now, 0.5, 0)}
    with time_inside(networks, HostClock(now)) as times:
        for _ in range(3):
            networks["prior"](torch.zeros(4, 3), 0)
            now.passes(10)
        networks["corrector"](torch.zeros(1, 3), 0)
    networks["prior"](torch.zeros(4, 3), 0)  # nobody is watching any more
    assert times.seconds() == {"prior": 6, "corrector": 0.5}
    assert times.images == {"prior": 12, "corrector": 1}


def test_a_gradient_through_a_network_is_time_inside_it():
    now = FakeTime()
    network = slow_network(now, 2, 3)
    with time_inside({"prior": network}, HostClock(now)) as times:
        x = torch.zeros(1, 3, requires_grad=True)
        estimate = network(x, 0).sample
        now.passes(10)
        torch.autograd.grad((estimate * 1).sum(), x)
    assert times.seconds() == {"prior": 5}


def test_a_spread_is_the_median_and_the_ends():
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=5.0)


# --- FLOPs and the ceiling


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return SimpleNamespace(sample=self.convolution(x))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, t):
        return SimpleNamespace(sample=F.scaled_dot_product_attention(x, x, x) * self.weight)


def test_flops_are_those_of_a_count_by_hand(tiny):
    side = tiny.side
    own = 2 * (3 * 3 * 3) * 3 * side * side  # a multiply-add for each weight and pixel
    prior = tiny.prior(Convolution().requires_grad_(requires_grad=False), "epsilon")
    assert count_flops(prior, None, differentiates=False) == {"prior": own}
    assert count_flops(prior, None, differentiates=True) == {"prior": 2 * own}  # a transposed convolution back


def test_attention_counts_as_two_matrix_products(tiny):
    side = tiny.side
    prior = tiny.prior(Attention(), "epsilon")
    assert count_flops(prior, None, differentiates=False) == {"prior": 2 * 3 * (2 * side**3)}


def test_the_correctors_flops_are_counted_apart(tiny):
    corrector = tiny.corrector().network
    found = count_flops(tiny.epsilon_prior(), corrector, differentiates=False)
    assert found.keys() == {"prior", "corrector"}
    assert min(found.values()) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_machine_has_a_ceiling(dtype):
    ceiling = measure_ceiling(torch.device("cpu"), dtype, HostClock())
    assert ceiling.flops > 0
    assert ceiling.bytes > 0


# --- one case


def test_figures_are_of_one_face_and_ratios_run_by_run():
    runs = [
        Run(seconds, 2 * seconds, {"prior": 0.8 * seconds}, {"prior": 40}, Ceiling(ceiling, 7.0))
        for seconds, ceiling in ((4.0, 1000.0), (8.0, 250.0), (2.0, 4000.0))
    ]
    speed = summarise(runs, 4, 10, {"prior": 50}, 3.0)
    assert speed.seconds == Spread(1.0, 0.5, 2.0)
    assert speed.faces_per_second == 1.0
    assert speed.step_seconds.median == pytest.approx(0.1)
    assert speed.cpu_seconds.median == 2.0
    assert speed.share_outside.median == pytest.approx(0.2)
    assert speed.share_of["prior"] == pytest.approx(0.8)
    assert speed.flops == 500  # a face was in 10 of the 40 images
    assert speed.flops_per_second == Spread(500.0, 250.0, 1000.0)
    assert speed.ceiling_fraction == Spread(0.5, 0.25, 1.0)
    assert speed.peak_memory_mb == 3.0


def test_a_clock_that_rounds_never_makes_a_share_negative():
    assert Run(1.0, 1.0, {"prior": 1.01}, {"prior": 1}, Ceiling(1.0, 1.0)).share_outside == 0


@pytest.mark.parametrize(("method", "batch_size"), [("dpi", 2), ("dps", 2), ("ddrm", 1)])
def test_a_case_knows_its_evaluations_and_where_its_time_goes(method, batch_size):
    preset = find_preset(method).with_options(steps=3)
    pipeline = random_pipeline("16")
    speed, images = measure(pipeline, preset, batch_size, runs=2, scale=4)
    once = count_flops(pipeline.prior, None, differentiates=method == "dps")["prior"]
    assert speed.evaluations == 3
    assert speed.flops == 3 * once
    assert 0 < speed.share_outside.median < 1
    assert speed.share_outside.median + speed.share_of["prior"] == pytest.approx(1, abs=0.2)
    assert images.shape == (batch_size, 3, 16, 16)


def test_a_method_without_a_prior_is_all_outside():
    speed, _ = measure(random_pipeline("16"), find_preset("bicubic"), 2, runs=1, scale=4)
    assert (speed.evaluations, speed.flops, speed.share_outside.median) == (0, 0, 1)


# --- networks of random weights


def test_the_random_paper_network_has_the_papers_size():
    with torch.device("meta"):
        prior, corrector = _paper_prior(), _paper_corrector()
    assert sum(p.numel() for p in prior.parameters()) == pytest.approx(93.6e6, rel=0.001)
    assert sum(p.numel() for p in corrector.parameters()) == pytest.approx(5.87e6, rel=0.001)


def test_random_networks_are_the_same_every_time_and_leave_others_randomness_alone():
    torch.manual_seed(3)
    first = random_pipeline("16")
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    second = random_pipeline("16")
    for a, b in zip(first.unet.parameters(), second.unet.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["random:ffqh", "random:12", "random:8", "random:"])
def test_a_random_network_that_does_not_exist_is_refused(name):
    with pytest.raises(OptionError, match="random:ffhq"):
        load_subject(name, "auto", "cpu", "float32")


# --- options


def test_a_grid_is_everything_times_everything():
    grid = Grid(dtypes=["float32", "bfloat16"], methods=["dpi", "ddnm,eta=0.5"], batch_sizes=[1, 8], steps=[5])
    cases = list(grid.cases())
    assert len(cases) == 8
    assert {case.preset.sampling.steps for case in cases} == {5}
    assert [case.subject.dtype for case in cases] == ["float32"] * 4 + ["bfloat16"] * 4  # networks are loaded once


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": [0]}, "batch_sizes"),
        ({"dtypes": ["float64"]}, "float64"),
        ({"devices": []}, "devices"),
        ({"methods": ["dpi", "dpi"]}, "methods"),
        ({"methods": ["sharpen"]}, "sharpen"),
    ],
)
def test_a_grid_refuses_what_does_not_exist(options, message):
    with pytest.raises(OptionError, match=message):
        Grid(**options)


@pytest.mark.parametrize(
    "options", [{"grids": [{"batch": [1]}]}, {"grids": ["all"]}, {"runs": 0}, {"against": "ours"}, {"rival_steps": 1}]
)
def test_options_of_the_speed_benchmark_are_checked(options):
    with pytest.raises(OptionError):
        SpeedConfig(**options)


def test_the_configuration_of_the_documents_is_valid(request):
    path = request.config.rootpath / "configs" / "speed.yaml"
    config = SpeedConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    cases = [case for grid in config.chosen_grids() for case in grid.cases()]
    assert {case.subject.prior for case in cases} == {"", "random:ffhq"}


# --- the other package


def test_a_duel_is_settled_turn_by_turn():
    ours = [Turn(2.0, 1.0, 40), Turn(4.0, 3.0, 40), Turn(2.0, 1.5, 40)]
    theirs = [Turn(3.0, 1.5, 40), Turn(4.0, 1.0, 40), Turn(4.0, 2.0, 40)]
    duel = settle("other 1.0", "ddrm", ours, theirs, 2)
    assert duel.ratio == Spread(1.5, 1.0, 2.0)
    assert (duel.ours.median, duel.theirs.median, duel.evaluations) == (1.0, 2.0, 20)
    assert (duel.ours_outside, duel.theirs_outside) == (0.25, 0.5)


def test_a_duel_of_unequal_evaluations_is_refused():
    with pytest.raises(FacePriorError, match=r"ours gave the network 40 images and other 1\.0 20"):
        settle("other 1.0", "ddrm", [Turn(2.0, 1.0, 40)], [Turn(3.0, 1.5, 20)], 2)


def test_a_missing_rival_names_the_extra(monkeypatch):
    for name in ("torchvision", "deepinv"):
        monkeypatch.setitem(sys.modules, name, None)
    result = invoke("benchmark", "speed", "--against", "deepinv")
    assert result.exit_code == 2
    assert "pip install deepinv" in result.stderr


# --- a profile


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "matrix products"),
        ("aten::native_group_norm", "norms"),
        ("aten::copy_", "moving data"),
        ("aten::normal_", "random numbers"),
        ("aten::silu", "elementwise and the rest"),
        ("aten::add", "elementwise and the rest"),
    ],
)
def test_an_operation_is_of_the_kind_that_bounds_it(name, kind):
    assert kind_of(name) == kind


def test_a_profile_shares_out_all_of_the_time():
    matrix = torch.ones(64, 64)
    operations = profile(lambda: torch.add(matrix @ matrix, 1), torch.device("cpu"))
    assert {"aten::mm", "aten::add"} <= {operation.name for operation in operations}
    assert sum(by_kind(operations).values()) == pytest.approx(1)
    assert [o.seconds for o in operations] == sorted((o.seconds for o in operations), reverse=True)


# --- growth


def test_the_fit_finds_the_exponent_and_the_fixed_cost():
    sizes = [10, 50, 250, 1000, 5000]
    found = fit(sizes, [3 + 0.02 * size**1.5 for size in sizes])
    assert found.exponent == pytest.approx(1.5, abs=0.01)
    assert found.fixed == pytest.approx(3, rel=0.02)
    assert found(100) == pytest.approx(23, rel=0.02)


def test_a_fixed_cost_is_never_negative():
    found = fit([1, 2, 4, 8], [0.1, 1.9, 5.8, 13.9])  # a straight line through these starts below 0
    assert found.fixed >= 0


def test_memory_grows_by_its_slope_and_may_be_unknown():
    points = [Point(size, float(size), 100.0 + 2 * size) for size in (10, 20, 30)]
    assert grown("faces a batch", "", points).memory_mb_each == pytest.approx(2)
    assert grown("faces a batch", "", [Point(p.size, p.seconds, None) for p in points]).memory_mb_each is None
    with pytest.raises(OptionError, match="at least three"):
        grown("faces a batch", "", points[:2])


def test_batches_and_sides_are_measured_and_drawn(tmp_path):
    found = [grow_faces((1, 2, 3), prior=SMALL, runs=1), grow_side((16, 24, 32), runs=1)]
    write_growth(tmp_path, found, "the command")
    values = json.loads((tmp_path / GROWTH_FILE).read_text(encoding="utf-8"))
    assert [[point["size"] for point in own["points"]] for own in values["growth"]] == [[1, 2, 3], [16, 24, 32]]
    assert values["machine"]["torch"] == str(torch.__version__)
    assert (tmp_path / PLOT_FILE).stat().st_size > 1000


# --- processes


def test_a_process_of_its_own_tells_its_time_and_memory():
    run = run_statements("x = bytearray(50_000_000)")
    assert 0 < run.seconds < run.process_seconds
    assert run.peak_memory_mb is None or run.peak_memory_mb > 50


def test_a_command_that_fails_says_what_it_said():
    with pytest.raises(FacePriorError, match="No such command"):
        run_command(["sharpen"])


def test_the_machine_is_named():
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.torch in str(machine)


# --- the command


def speed_json(tmp_path, *arguments):
    output = tmp_path / "speed.json"
    result = invoke("benchmark", "speed", "--no-start-up", "--runs", 1, "--scale", 4, "--output", output, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text(encoding="utf-8")), result.stdout


def test_the_command_writes_every_case_with_its_limit(tmp_path):
    values, shown = speed_json(
        tmp_path,
        *("--prior", SMALL, "--method", "dpi", "--steps", 2, "--batch-size", 1, "--batch-size", 2),
        *("--dtype", "float32", "--dtype", "bfloat16", "--device", "cpu", "--profile"),
    )
    assert [(case["networks"]["dtype"], case["batch_size"]) for case in values["cases"]] == [
        *(("float32", 1), ("float32", 2), ("bfloat16", 1), ("bfloat16", 2))
    ]
    for case in values["cases"]:
        assert case["networks"]["prior"] == SMALL
        assert case["networks"]["parameters"]["prior"] > 0
        assert case["options"]["steps"] == case["speed"]["evaluations"] == 2
        assert case["speed"]["ceiling_flops"]["median"] > 0
        assert case["speed"]["ceiling_fraction"]["median"] > 0
        assert case["operations"][0]["seconds"] > 0
        assert (case["float32_db"] is None) == (case["networks"]["dtype"] == "float32")
    assert values["cases"][2]["float32_db"] > 10
    assert (values["duels"], values["start_up"]) == ([], [])
    assert "bound by" in shown
    assert "| random:16 |" in shown  # a table that can be pasted


def test_flags_win_over_the_file_in_every_grid(tmp_path):
    config = tmp_path / "speed.yaml"
    config.write_text(
        f"grids: [{{priors: ['{SMALL}'], steps: [2]}}, {{priors: ['{SMALL}'], steps: [3]}}]\nruns: 3\n",
        encoding="utf-8",
    )
    values, _ = speed_json(tmp_path, "--config", config, "--method", "ddrm", "--dtype", "float32")
    assert [(case["method"], case["options"]["steps"]) for case in values["cases"]] == [("ddrm", 2), ("ddrm", 3)]
    assert values["config"]["runs"] == 1


def test_every_run_is_announced():
    config = SpeedConfig(
        grids=[{"priors": [SMALL], "steps": [2], "dtypes": ["float32"], "batch_sizes": [1, 2]}],
        runs=2,
        start_up=False,
        scale=4.0,
    )
    said = []
    run_speed(config, said.append)
    assert len(said) == count_runs(config) == 6


def test_options_before_an_inner_command_are_refused_rather_than_lost():
    result = invoke("benchmark", "--faces", 3, "speed")
    assert result.exit_code == 2
    assert "come after it" in " ".join(result.stderr.replace("│", " ").split())


def test_the_benchmark_of_methods_still_needs_its_folder():
    result = invoke("benchmark", "--faces", 3)
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_growth_of_nothing_is_refused(tmp_path):
    result = invoke("benchmark", "growth", "--output", tmp_path, "--no-faces", "--no-side", "--no-photos")
    assert result.exit_code == 2
    assert "left out" in result.stderr
