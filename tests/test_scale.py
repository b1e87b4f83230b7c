"""Many photographs: a listing in parts, what is noted of tries, and runs on a cluster that loses machines."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from copy import copy
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from typer.testing import CliRunner

import moody_store
from albums import HANGS, KILLS, CornerDetector, PoisonedDetector, save_album, save_photo, tiny_pipeline
from conftest import s3_environment
from faceprior.cli.app import app
from faceprior.cli.console import EXIT_STOPPED
from faceprior.errors import ImageError, OptionError, OutputError, UnreachableError
from faceprior.folders.inputs import Input, Unlisted, expand, find_inputs, output_names
from faceprior.folders.manifest import MANIFEST_NAME
from faceprior.folders.run import restore_files
from faceprior.methods import find_preset
from faceprior.photographs import RestoreOptions
from faceprior.storage import Url, as_url, place

pytest.importorskip("pyarrow")
pytest.importorskip("ray")
import ray

from faceprior.scale.journal import Journal
from faceprior.scale.listing import Photograph, list_rows, read_listing, write_listing
from faceprior.scale.run import FOLDER_NAME, ray_lister, restore_on_ray
from faceprior.scale.work import Job, Restorer, ScaleOptions, compose_photograph, prepare_photograph

OPTIONS = RestoreOptions(preset=find_preset("default").with_options(steps=2), kind="photo", min_face=8)
SETTINGS = {"seed": 0}


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny_pipeline(tiny)


def contents(folder):
    if isinstance(folder, Url):
        return {name: (folder / name).read() for name, _ in folder.files() if not name.startswith(FOLDER_NAME)}
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


def rows_lister(output, suffixes=("",)):
    return lambda url, belows: iter(list_rows(url, belows, output, suffixes))


@pytest.mark.parametrize("suffixes", [("",), ("", "-2", "-mean")])
def test_folders_that_are_listed_apart_get_the_names_that_they_get_together(tmp_path, suffixes):
    chance = random.Random(0)  # noqa: S311
    for trial in range(30):
        output = place(f"memory://{tmp_path.name}/{trial}")
        urls = [output / "x", output / "y/x"]
        for url in urls + chance.choices(urls, k=chance.randrange(60)):
            stem = "".join(chance.choices("abA_ä", k=chance.randrange(1, 3))) + chance.choice(["", "-2", "_png"])
            folder, ending = chance.choice(["", "x/", "sub/", "SUB/"]), chance.choice(["jpg", "png", "JPG"])
            (url / f"{folder}{stem}.{ending}").write(b"")
        inputs = find_inputs(urls, output)
        expected = dict(zip((str(own.path) for own in inputs), output_names(inputs, output, suffixes), strict=True))
        found = (own for url in urls for own in expand(url, output, print, rows_lister(output, suffixes)))
        listing = write_listing(found, output / "run", output, suffixes, 2, SETTINGS)
        photographs = [own for part in range(listing.parts) for own in listing.read(part)]
        assert {own.input: own.name for own in photographs} == expected
        fsspec.filesystem("memory").store.clear()


def test_an_input_that_lies_in_the_output_is_not_written_over(tmp_path):
    names = ["a.jpg", "in/a.jpg", "in/b-face1.png", "in/in/a.png", "in/in/b.png", "in/in/c.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inputs = find_inputs([tmp_path / "a.jpg", tmp_path / "in"], tmp_path)
    written = write_listing(inputs, as_url(tmp_path / "run"), tmp_path, [""], 1, SETTINGS)
    assert [own.name for own in written.read(0)] == ["a_jpg", "in_a", "b-face1", "in/a_png", "in/b_png", "in/c"]


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
    _, photographs = listed(tmp_path, expand(folder, tmp_path / "out", print, rows_lister(tmp_path / "out")))
    assert [one.given.problem for one in photographs] == [
        None,
        f"{folder}/b?.png: its name is not UTF-8; rename it",
        None,
    ]


# --- the journal


def record_of(name, **more):
    return {"input": name, "status": "done", **more}


def photographs_of(*names):
    return [Photograph(Input(place(name)), name) for name in names]


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


def job_of(output, pipeline=None, detector=None, **scale):
    find, load = partial(_same, detector or CornerDetector()), partial(_same, pipeline)
    return Job(output, OPTIONS, ScaleOptions(**{"timeout": 60.0, **scale}), find, load)


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

    photograph = Photograph(Input(save_photo(tmp_path / "a.png")), "a")
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
    step, _, _ = prepare_photograph(job, pipeline.prior.card, Photograph(Input(photo), "hangs"))
    assert step.record["error"] == f"{photo}: took longer than 0.3 seconds; allow more with --ray-option timeout=N"
    assert step.record["again"]


def test_a_decoder_that_is_stopped_has_no_damaged_picture(pipeline, tmp_path):
    class Decoder(PoisonedDetector):
        def __call__(self, *own):
            try:
                return super().__call__(*own)
            except OSError as error:
                raise ImageError("is damaged") from error

    photograph = Photograph(Input(save_photo(tmp_path / "hangs.png", *HANGS)), "hangs")
    job = job_of(tmp_path, detector=Decoder(), timeout=0.3)
    step, _, _ = prepare_photograph(job, pipeline.prior.card, photograph)
    assert "took longer than 0.3 seconds" in step.record["error"]
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
def cluster(s3_server, tmp_path_factory):
    from ray.cluster_utils import Cluster

    import albums

    moody = tmp_path_factory.mktemp("moody")
    moody_store.install(moody)
    environment = {
        "PYTHONPATH": os.pathsep.join([*sys.path, str(moody)]),
        "MOODY": str(moody),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        **s3_environment(s3_server),
    }
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


FAILED = {
    "kills": "given up after 2 tries (WorkerCrashedError",
    "hangs": "took longer than 5 seconds",
    "broken": "is not a picture that can be read",
}


@pytest.fixture
def many(tmp_path):
    """Photographs of one and two faces, one that kills, one that hangs, and one that is none."""
    return save_many(tmp_path / "many", 24)


def save_many(folder, count):
    for number in range(count):
        save_photo(folder / ("sub" if number % 3 else "") / f"{number:02}.png", 44 - 14 * (number % 2), seed=number)
    save_photo(folder / "kills.png", *KILLS)
    save_photo(folder / "hangs.png", *HANGS)
    (folder / "broken.jpg").write_text("no picture")
    return folder


def expected(pipeline, many, folder, without=FAILED):
    inputs = [given for given in find_inputs([many], folder) if given.path.stem not in without]
    list(restore_files(pipeline, inputs, folder, OPTIONS, CornerDetector()))
    return contents(folder)


def lines_of(output, kind):
    """Those of all records, or of the journal, in order."""
    folder = as_url(output) / FOLDER_NAME / kind
    return [json.loads(line) for name in folder.names() for line in (folder / name).read().splitlines()]


def check(output, inputs, want, failed):
    """Every input has one line and every file of the output one owner, and what failed says why."""
    assert contents(output) == want
    records = [line for line in lines_of(output, "records") if "input" in line]
    assert [record["input"] for record in records] == [str(own.path) for own in inputs]
    files = [own for record in records for own in record.get("outputs", ())]
    assert sorted(own["file"] for own in files) == sorted(want)
    for own in files:
        content = want[own["file"]]
        assert (own["bytes"], own["sha256"]) == (len(content), sha256(content).hexdigest())
    said = {Path(record["input"]).stem: record["error"] for record in records if record["status"] == "failed"}
    assert said.keys() == failed.keys()
    for name, why in failed.items():
        assert why in said[name]
    assert lines_of(output, "journal") == []
    return records


def test_whatever_fails_every_other_result_is_that_of_a_plain_run(pipeline, cluster, tmp_path):
    many, output = save_many(tmp_path / "many", 6), tmp_path / "out"
    for name in ("throttled", "slow", "forbidden", "full"):
        save_photo(many / f"{name}.png", seed=len(name))
    failed = {**FAILED, "forbidden": "cannot be opened (Access Denied)", "full": "No space left on device"}
    want = expected(pipeline, many, tmp_path / "plain", failed)
    there, source = place(f"moody://{output}"), place(f"moody://{many}")
    job = job_of(there, pipeline, PoisonedDetector(), parts=4, tries=2, timeout=5.0)
    node = cluster.add_node(num_cpus=2)
    seen = []
    for record in restore_on_ray([source], job):
        seen.append(record["input"])
        if len(seen) == 3:
            cluster.remove_node(node, allow_graceful=False)
    inputs = find_inputs([source], there)
    records = check(output, inputs, want, failed)
    assert sorted(seen) == sorted(record["input"] for record in records)
    with pytest.raises(OptionError, match="holds a run; add --resume"):
        next(restore_on_ray([], job))
    Path(os.environ["MOODY"], moody_store.ROOM).touch()
    again = {Path(record["input"]).stem: record for record in restore_on_ray([], job, resume=True)}
    assert again.keys() == {"hangs", "full"}  # what may pass is tried again, and nothing else
    assert (again["hangs"]["status"], again["full"]["status"]) == ("failed", "done")
    del failed["full"]
    check(output, inputs, expected(pipeline, many, tmp_path / "all", failed), failed)


def test_the_folders_of_a_storage_are_listed_by_the_cluster_as_by_one_machine(cluster, bucket, tmp_path):
    for name in ("b.png", "a.jpg", "trip/c.png", "trip/day/d.png", "zoo/e.webp", "notes.txt", "out/f.png"):
        place(f"{bucket}/in/{name}").write(name.encode())
    url, output, said = place(f"{bucket}/in"), place(f"{bucket}/in/out"), []
    lister = ray_lister(output, [""])
    _, photographs = listed(tmp_path, expand(url, output, said.append, lister))
    assert [photograph.given for photograph in photographs] == [
        replace(own, folder="") for own in find_inputs([url], output, said.append)
    ]
    assert [photograph.name for photograph in photographs] == ["a", "b", "trip/c", "trip/day/d", "zoo/e"]
    assert said == [f"{url}: left out 1 .txt file"] * 2
    (gone,) = expand(place("s3://no-such-bucket/in"), output, print, lister)
    assert [gone] == find_inputs([place("s3://no-such-bucket/in")], output)
    assert isinstance(gone, Unlisted)


def _breaks_once(pipeline, folder):
    """The first of those that are loaded is as a GPU's whose context an error has broken."""
    (folder / str(os.getpid())).touch()
    if len(list(folder.iterdir())) == 1:
        broken = copy(pipeline)

        def restore(*_, **__):
            broken.prior = SimpleNamespace(device=SimpleNamespace(type="cuda"))
            raise RuntimeError("CUDA error: device-side assert triggered")

        broken.restore = restore
        return broken
    return pipeline


def test_networks_whose_gpu_breaks_are_replaced_and_several_share_a_gpu(pipeline, cluster, tmp_path):
    for number in range(12):
        save_photo(tmp_path / "in" / f"{number:02}.png", seed=number)
    inputs, output, loads = find_inputs([tmp_path / "in"], tmp_path / "out"), tmp_path / "out", tmp_path / "loads"
    loads.mkdir()
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    scale = ScaleOptions(parts=2, tries=3, timeout=60.0, gpus=0.5)
    load = partial(_breaks_once, pipeline, loads)
    job = Job(output, replace(OPTIONS, batch_size=1), scale, partial(_same, CornerDetector()), load)
    records = list(restore_on_ray([tmp_path / "in"], job))
    assert {record["status"] for record in records} == {"done"}
    check(output, inputs, expected(pipeline, tmp_path / "in", tmp_path / "plain"), {})
    assert len(list(loads.iterdir())) >= 2
    cluster.remove_node(node)


class Slow(PoisonedDetector):
    def __call__(self, photo, min_face=24):
        time.sleep(0.2)
        return super().__call__(photo, min_face)


@pytest.mark.slow
def test_ten_machines_are_lost_and_nothing_else(pipeline, cluster, tmp_path):
    count = int(os.environ.get("PHOTOGRAPHS", "120"))
    many, output = save_many(tmp_path / "many", count), tmp_path / "out"
    want = expected(pipeline, many, tmp_path / "plain")
    nodes, seen = [cluster.add_node(num_cpus=1) for _ in range(2)], []
    moments = random.sample(range(1, count - 10), 10)
    inputs, job = find_inputs([many], output), job_of(output, pipeline, Slow(), parts=7, tries=2, timeout=5.0)
    for record in restore_on_ray([many], job):
        seen.append(record["input"])
        if len(seen) in moments:
            cluster.remove_node(nodes.pop(random.randrange(2)), allow_graceful=False)  # noqa: S311
            nodes.append(cluster.add_node(num_cpus=1))
    check(output, inputs, want, FAILED)
    assert sorted(seen) == sorted(str(own.path) for own in inputs)
    for node in nodes:
        cluster.remove_node(node)


DRIVER = """
import pickle, sys, ray
from pathlib import Path
ray.init(sys.argv[1], log_to_driver=False)
from faceprior.scale.run import restore_on_ray
places, job = pickle.loads(Path(sys.argv[2]).read_bytes())
for record in restore_on_ray(places, job, resume=True):
    print(record["input"], flush=True)
"""


@pytest.mark.slow
def test_a_driver_is_killed_and_its_run_in_s3_goes_on(pipeline, many, cluster, bucket, tmp_path):
    want, output = expected(pipeline, many, tmp_path / "plain"), place(f"{bucket}/out")
    job = job_of(output, pipeline, PoisonedDetector(), parts=3, tries=3, timeout=5.0)
    inputs = find_inputs([many], output)
    (tmp_path / "job").write_bytes(ray.cloudpickle.dumps(([many], job)))
    command = [sys.executable, "-c", DRIVER, cluster.address, str(tmp_path / "job")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:  # noqa: S603
        done = (line for line in driver.stdout if line.startswith(str(many)))  # Ray has things to say, too
        for _ in range(7):
            next(done)
        time.sleep(3)  # until those are in the journal
        driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert len(contents(output)) >= 5
    again = [record["input"] for record in restore_on_ray([], job, resume=True)]
    assert 0 < len(again) <= 20
    check(output, inputs, want, {**FAILED, "kills": "given up after 3 tries ("})


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_command_is_interrupted_blames_nobody_and_goes_on(cluster, tmp_path, stop):
    for number in range(300):
        save_photo(tmp_path / "in" / f"{number:03}.png", 16, 16, seed=number)
    how = ["--aligned", "--method", "bicubic", "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "faceprior", "restore", str(tmp_path / "in"), *how, "--output"]
    plain, output = tmp_path / "plain", tmp_path / "out"
    subprocess.run([*command, str(plain)], check=True)  # noqa: S603
    on_ray = [*command, str(output), "--ray", cluster.address, "--ray-option", "parts=4", "--resume"]
    with subprocess.Popen(on_ray, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        while process.poll() is None and len(contents(output)) < 20:
            time.sleep(0.1)
        process.send_signal(stop)
        _, said = process.communicate()
    assert process.returncode == EXIT_STOPPED
    assert "the same command with --resume goes on" in " ".join(said.split())
    tries = Counter[str]()
    for line in lines_of(output, "journal"):
        tries.update(line.get("tried", ()))
        tries.subtract([*line.get("untried", ()), *([line["input"]] if "input" in line else ())])
    assert set(tries.values()) == {0}
    assert 20 <= len(contents(output)) < 300
    subprocess.run(on_ray, check=True)  # noqa: S603
    check(output, find_inputs([tmp_path / "in"], output), contents(plain), {})
