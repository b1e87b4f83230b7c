import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from faceprior.benchmark import run as run_module
from faceprior.benchmark.config import BenchmarkConfig
from faceprior.benchmark.datasets import FaceSet, choose_faces, open_faces
from faceprior.benchmark.metrics import COSTS, MeterOptions
from faceprior.benchmark.results import Results
from faceprior.benchmark.run import Benchmark
from faceprior.pipeline import FacePriorPipeline
from faceprior.priors import save_prior
from tiny_faces import pack_faces, smooth_picture

CPU = torch.device("cpu")


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


def make_config(folder, **options):
    usual = {
        "data": [str(folder)],
        "methods": ["bicubic", {"name": "dpi", "steps": 2, "label": "dpi"}],
        "scales": [4.0],
    }
    return BenchmarkConfig(**{**usual, "batch_size": 2, "confidence_draws": 50, **options})


def make_benchmark(pipeline, config, output):
    found = open_faces(config.data, config.dataset)
    faces = FaceSet(found.name, choose_faces(found.faces, config.faces, config.subset))
    return Benchmark(pipeline, config, faces, output, MeterOptions((), pipeline.resolution, CPU))


def table(rows):
    """Rows without what a clock and the system tell."""
    return [{name: value for name, value in row.items() if name not in COSTS or name == "nfe"} for row in rows]


# --- the run


@pytest.fixture(scope="module")
def uninterrupted(pipeline, pictures, tmp_path_factory):
    config = make_config(pictures, seeds=[0, 1], samples=2)
    return config, make_benchmark(pipeline, config, tmp_path_factory.mktemp("whole")).run()


class Killed(BaseException):
    pass


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 32))
def test_a_run_that_is_killed_anywhere_and_started_again_gives_the_same_table(
    uninterrupted, pipeline, tmp_path_factory, after
):
    config, expected = uninterrupted
    output = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        writes = iter(range(after))
        write = run_module.write_png

        def dying(*arguments):
            if next(writes, None) is None:
                raise Killed
            write(*arguments)

        patch.setattr(run_module, "write_png", dying)
        with pytest.raises(Killed):
            make_benchmark(pipeline, config, output).run()
    before = Results(output).rows.keys()
    restored = []
    with pytest.MonkeyPatch.context() as patch:
        restore = FacePriorPipeline.restore

        def counting(self, faces, generators, samples, *rest):
            restored.append(len(faces) * samples)
            return restore(self, faces, generators, samples, *rest)

        patch.setattr(FacePriorPipeline, "restore", counting)
        rows = make_benchmark(pipeline, config, output).run()
    assert table(rows) == table(expected)
    assert sum(restored) == len(expected) - len(before)
    assert table(Results(output).rows.values()) == table(expected)
    assert list((output / "parts").iterdir()) == []
