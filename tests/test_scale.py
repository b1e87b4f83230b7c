"""Many photographs: a listing in parts, what is noted of tries, and runs on a cluster that loses machines."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from albums import HANGS, KILLS, CornerDetector, PoisonedDetector, save_album, save_photo, tiny_pipeline
from conftest import s3_environment
from faceprior.cli.app import app
from faceprior.errors import ImageError, OptionError, OutputError, UnreachableError
from faceprior.folders.inputs import Input, Unlisted, expand, find_inputs, output_names
from faceprior.folders.manifest import MANIFEST_NAME
from faceprior.folders.run import restore_files
from faceprior.methods import find_preset
from faceprior.photographs import RestoreOptions
from faceprior.storage import Url, as_url, place

pytest.importorskip("pyarrow")
from faceprior.scale.journal import Journal
from faceprior.scale.listing import Photograph, read_listing, write_listing
from faceprior.scale.run import FOLDER_NAME, ScaleOptions, new_job, restore_on_ray
from faceprior.scale.work import Restorer, compose_photograph, prepare_photograph

OPTIONS = RestoreOptions(preset=find_preset("default").with_options(steps=2), kind="photo", min_face=8)
SETTINGS = {"seed": 0}


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny_pipeline(tiny)


def contents(folder):
    if isinstance(folder, Url):
        walked = [(Path(below, name), folder) for below, _, files in folder.walk() for name in files]
        return {str(own): (url / own).read() for own, url in walked if FOLDER_NAME not in own.parts}
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST_NAME and FOLDER_NAME not in path.parts
    }


# --- the listing


def listed(tmp_path, inputs, suffixes=("",), parts=3):
    written = write_listing(inputs, as_url(tmp_path / "run"), tmp_path / "out", suffixes, parts, SETTINGS)
    assert read_listing(as_url(tmp_path / "run")) == written
    return written, [photograph for part in range(written.parts) for photograph in written.read(part)]


def test_a_listing_has_every_input_once_in_parts_of_one_size(tmp_path):
    inputs = [Input(place(f"s3://b/{n:03}.jpg"), "", stamp={"bytes": n, "modified_ns": 7}) for n in range(100)]
    listing, photographs = listed(tmp_path, [*inputs, *inputs[:50]], parts=7)
    assert (listing.parts, listing.photographs) == (7, 100)
    assert [photograph.given for photograph in photographs] == [replace(own) for own in inputs]
    sizes = [len(listing.read(part)) for part in range(7)]
    assert sum(sizes) == 100
    assert listed(tmp_path, inputs[:2], parts=7)[0].parts == 2
    assert listed(tmp_path, [], parts=7)[0].parts == 0


@pytest.mark.parametrize("suffixes", [("",), ("", "-2", "-mean")])
def test_the_names_of_a_listing_are_those_of_a_run_over_a_folder(tmp_path, suffixes):
    names = [
        "a.jpg",
        "A.png",
        "a_png.webp",
        "a-2.jpg",
        "b.jpg",
        "sub/a.jpg",
        "sub/b.tif",
        "c.jpg",
        "c-mean.png",
        "ä.png",
    ]
    inputs = [Input(tmp_path / "in" / name, str(Path(name).parent).replace(".", "")) for name in names]
    expected = output_names(inputs, tmp_path / "out", suffixes)
    assert [photograph.name for photograph in listed(tmp_path, inputs, suffixes)[1]] == expected
    assert expected != [str(Path(name).with_suffix("")) for name in names]


def test_an_input_with_a_problem_keeps_it(tmp_path):
    given = Input(place("s3://b/none"), problem="s3://b/none: holds no pictures")
    _, (photograph,) = listed(tmp_path, [given])
    assert photograph.given == given
    step, _, _ = prepare_photograph(job_of(tmp_path), None, photograph)
    assert step.record == {"input": "s3://b/none", "status": "failed", "error": given.problem}


def test_a_listing_that_breaks_off_is_none(tmp_path):
    whole = [Input(place("s3://b/in/0.jpg")), Input(place("s3://b/in/1.jpg"))]
    with pytest.raises(OutputError, match=r"s3://b/in: cannot be listed.*start again"):
        listed(tmp_path, [*whole, Unlisted(place("s3://b/in"), problem="s3://b/in: cannot be listed (gone)")])
    assert read_listing(as_url(tmp_path / "run")) is None
    assert listed(tmp_path, whole)[0].photographs == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_is_not_text_is_a_problem_of_that_file_alone(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"a.png", b"b\xff.png", b"c.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    _, photographs = listed(tmp_path, expand(folder, tmp_path / "out", print))
    assert [one.problem for one in photographs] == [
        None,
        f"{folder}/b?.png: its name is not UTF-8; rename it",
        None,
    ]


# --- the journal


def record_of(name, **more):
    return {"input": name, "status": "done", **more}


def photographs_of(*names):
    return [Photograph(name, name) for name in names]


def test_a_journal_knows_what_is_done_and_what_was_only_tried(tmp_path):
    folder, three = as_url(tmp_path), photographs_of("a", "b", "c")
    first = Journal(folder, SETTINGS)
    first.tried(0, ["a", "b"])
    first.flush()
    first.finished(0, record_of("a"))
    first.tried(0, ["c"])
    first.tried(1, ["x"])
    first.flush()
    first.finished(0, record_of("b"))  # which the driver is killed before it writes
    second = Journal(folder, SETTINGS)
    assert second.done == set()
    assert second.open(0, three) == ({"a": record_of("a")}, {"b": 1, "c": 1})
    second.tried(0, ["b", "c"])
    second.flush()
    second.untried(0, ["c"])  # it was stopped
    second.flush()
    third = Journal(folder, SETTINGS)
    assert third.open(0, three)[1] == {"b": 2, "c": 1}
    third.complete(0, [record_of("a"), record_of("b"), record_of("c")])
    fourth = Journal(folder, SETTINGS)
    assert fourth.done == {0}
    assert [name[:5] for name in (folder / "journal").names()] == ["00001"]
    lines = (folder / "records" / "00000.jsonl").read().splitlines()
    assert [json.loads(line) for line in lines] == [{"settings": SETTINGS}, *map(record_of, "abc")]


def test_what_may_pass_is_tried_again_by_the_next_run_and_only_that(tmp_path):
    folder, two = as_url(tmp_path), photographs_of("a", "b")
    first = Journal(folder, SETTINGS)
    first.open(0, two)
    first.complete(0, [record_of("a"), {"input": "b", "status": "failed", "again": True}])
    second = Journal(folder, SETTINGS)
    assert second.done == set()
    assert second.open(0, two) == ({"a": record_of("a")}, {})
    second.complete(0, [record_of("a"), record_of("b")])
    assert Journal(folder, SETTINGS).done == {0}
    assert (folder / "records").names() == ["00000.jsonl"]


def test_a_driver_that_was_taken_for_lost_commits_nothing(tmp_path):
    first = Journal(as_url(tmp_path), SETTINGS)
    Journal(as_url(tmp_path), SETTINGS)
    with pytest.raises(OptionError, match="another command has taken over this run"):
        first.complete(0, [record_of("a")])
    assert not (tmp_path / "records").exists()


# --- the work of one machine


def job_of(output, pipeline=None, detector=None, **changes):
    options = {"options": OPTIONS, "timeout": 60.0, **changes}
    find, load = partial(_same, detector or CornerDetector()), partial(_same, pipeline)
    return new_job(output, find_detector=find, load_pipeline=load, **options)


def _same(own):
    return own


def done_by_hand(job, photographs):
    restorer = Restorer(job)
    about = restorer.about()
    steps = [prepare_photograph(job, about.card, photograph) for photograph in photographs]
    _, *restored = restorer.restore(*(conditions for _, conditions, _ in steps))
    return [
        step.record or compose_photograph(job, about.made, photograph, step, prepared, own)
        for photograph, (step, _, prepared), own in zip(photographs, steps, restored, strict=True)
    ]


def test_the_three_tasks_write_what_a_run_over_a_folder_writes(pipeline, tmp_path):
    album = save_album(tmp_path / "album")
    inputs = find_inputs([album], tmp_path / "there")
    plain = list(restore_files(pipeline, inputs, tmp_path / "here", OPTIONS, CornerDetector()))
    _, photographs = listed(tmp_path, inputs)
    records = done_by_hand(job_of(tmp_path / "there", pipeline), photographs)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    for one, other in zip(records, plain, strict=True):
        assert {**one, "seconds": None} == {**other, "seconds": None}


def test_what_may_pass_is_told_from_what_never_will(pipeline, tmp_path, monkeypatch):
    class Moody:
        def __init__(self, error):
            self.error = error

        def __call__(self, *_):
            raise self.error

    photograph = Photograph(str(save_photo(tmp_path / "a.png")), "a")
    for error, again in (
        (UnreachableError("throttled"), True),
        (OutputError("full"), True),
        (MemoryError(), True),
        (ImageError("denied"), False),
        (ValueError("a fault of ours"), False),
    ):
        step, _, _ = prepare_photograph(job_of(tmp_path, detector=Moody(error)), pipeline.prior.card, photograph)
        assert (step.record["status"], step.record.get("again", False)) == ("failed", again), error
        assert isinstance(error, OutputError) or step.record["error"].startswith(photograph.input)


def test_a_photograph_that_takes_too_long_is_stopped(pipeline, tmp_path):
    photo = save_photo(tmp_path / "hangs.png", *HANGS)
    job = job_of(tmp_path, detector=PoisonedDetector(), timeout=0.3)
    step, _, _ = prepare_photograph(job, pipeline.prior.card, Photograph(str(photo), "hangs"))
    assert step.record["error"] == f"{photo}: took longer than 0.3 seconds; allow more with --ray-option timeout=N"
    assert step.record["again"]


# --- the command


def test_options_of_a_cluster_are_refused_without_one(tmp_path):
    save_photo(tmp_path / "a.png")
    cluster = ["--ray", "local", "--output", str(tmp_path / "out")]
    for options, message in (
        (["--ray-option", "tries=3"], "--ray-option is for a cluster; name it with --ray"),
        (["--ray", "local"], "writes into a folder, the same for all machines"),
        (["--ray-option", "tries=1", *cluster], "tries at least 2"),
        (["--ray-option", "gpu=1", *cluster], "--ray-option gpu is not known; choose parts, tries, timeout, gpus"),
        (["--ray-option", "parts=few", *cluster], "--ray-option parts"),
    ):
        result = CliRunner().invoke(app, ["restore", str(tmp_path / "a.png"), *options])
        assert result.exit_code == 2
        assert message in result.output.replace("\n", " ")


# --- a cluster of several nodes on this machine


@pytest.fixture(scope="module")
def cluster(s3_server):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    import albums

    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    environment |= s3_environment(s3_server)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    ray.cloudpickle.register_pickle_by_value(albums)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def many(tmp_path):
    """Photographs of one and two faces, one that kills, one that hangs, and one that is none."""
    folder = tmp_path / "many"
    for number in range(24):
        save_photo(folder / ("sub" if number % 3 else "") / f"{number:02}.png", 44 - 14 * (number % 2), seed=number)
    save_photo(folder / "kills.png", *KILLS)
    save_photo(folder / "hangs.png", *HANGS)
    (folder / "broken.jpg").write_text("no picture")
    return folder


def expected(pipeline, many, folder):
    inputs = [given for given in find_inputs([many], folder) if given.path.stem not in ("kills", "hangs", "broken")]
    list(restore_files(pipeline, inputs, folder, OPTIONS, CornerDetector()))
    return contents(folder)


def read_records(folder):
    """Those of all parts, in the order of the listing."""
    lines = [json.loads(line) for file in sorted(folder.glob("records/*")) for line in file.read_text().splitlines()]
    return [line for line in lines if "input" in line]


def check(output, many, want, tries=2):
    assert contents(output) == want
    folder = as_url(output) / FOLDER_NAME
    records = read_records(Path(output) / FOLDER_NAME)
    assert [record["input"] for record in records] == [str(own.path) for own in find_inputs([many], output)]
    failed = {Path(record["input"]).stem: record for record in records if record["status"] == "failed"}
    assert set(failed) == {"kills", "hangs", "broken"}
    assert f"given up after {tries} tries (" in failed["kills"]["error"]
    assert "took longer than 5 seconds" in failed["hangs"]["error"]
    assert "is not an image" in failed["broken"]["error"]
    assert (folder / "journal").names() == []
    return records


@pytest.mark.slow
def test_poison_is_named_nodes_are_lost_and_every_result_is_that_of_a_plain_run(pipeline, many, cluster, tmp_path):
    want, output = expected(pipeline, many, tmp_path / "plain"), tmp_path / "out"
    job = job_of(output, pipeline, PoisonedDetector(), timeout=5.0)
    node = cluster.add_node(num_cpus=2)
    seen, lost_at = [], random.randrange(2, 12)  # noqa: S311 - any moment will do
    running = restore_on_ray(find_inputs([many], output), output, job, ScaleOptions(parts=4, tries=2, timeout=5.0))
    for record in running:
        seen.append(record["input"])
        if len(seen) == lost_at:
            cluster.remove_node(node, allow_graceful=False)
    records = check(output, many, want)
    assert sorted(seen) == sorted(record["input"] for record in records)
    with pytest.raises(OptionError, match="holds a run; add --resume"):
        next(restore_on_ray([], output, job))
    (hangs,) = restore_on_ray([], output, job, ScaleOptions(tries=2), resume=True)
    assert hangs["again"]  # what may pass is tried again, and nothing else


DRIVER = """
import pickle, sys, ray
from pathlib import Path
ray.init(sys.argv[1], log_to_driver=False)
from faceprior.scale.run import restore_on_ray
inputs, output, job, options = pickle.loads(Path(sys.argv[2]).read_bytes())
for record in restore_on_ray(inputs, output, job, options, resume=True):
    print(record["input"], flush=True)
"""


@pytest.mark.slow
def test_a_driver_is_killed_and_its_run_in_s3_goes_on(pipeline, many, cluster, bucket, tmp_path):
    import ray

    want, output = expected(pipeline, many, tmp_path / "plain"), place(f"{bucket}/out")
    job = job_of(output, pipeline, PoisonedDetector(), timeout=5.0)
    options = ScaleOptions(parts=3, tries=3, timeout=5.0)
    (tmp_path / "job").write_bytes(ray.cloudpickle.dumps((find_inputs([many], output), output, job, options)))
    command = [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path / "job")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:  # noqa: S603
        done = (line for line in driver.stdout if line.startswith(str(many)))  # Ray has things to say, too
        for _ in range(7):
            next(done)
        time.sleep(3)  # until those are in the journal
        driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert len(contents(output)) >= 5
    again = [record["input"] for record in restore_on_ray([], output, job, options, resume=True)]
    assert 0 < len(again) <= 20
    check(output, many, want, tries=3)
