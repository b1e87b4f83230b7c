"""Inputs and outputs at URLs: listed, read and written as those on a disk."""

import functools
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import fsspec
import pytest
from typer.testing import CliRunner

from albums import CornerDetector, save_album, save_photo, tiny_pipeline
from faceprior.cli.app import app
from faceprior.errors import ImageError, OptionError, OutputError, UnreachableError
from faceprior.folders import manifest as manifest_module
from faceprior.folders.inputs import find_inputs
from faceprior.folders.manifest import MANIFEST_NAME
from faceprior.folders.run import restore_files
from faceprior.methods import find_preset
from faceprior.photographs import RestoreOptions
from faceprior.storage import Url, as_file, as_url, place, read, stamp, write

OPTIONS = RestoreOptions(preset=find_preset("default").with_options(steps=2), kind="photo", min_face=8)


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny_pipeline(tiny)


@pytest.fixture
def album(tmp_path):
    return save_album(tmp_path / "album")


@pytest.fixture(params=["memory", "s3", "file"])
def storage(request, tmp_path):
    """Where a folder at a URL may be."""
    if request.param == "memory":
        yield f"memory://{request.node.name}"
        fsspec.filesystem("memory").store.clear()
    elif request.param == "file":
        yield f"file://{tmp_path}/storage"
    else:
        yield f"{request.getfixturevalue('bucket')}/some/where"


def upload(folder, url):
    for path in folder.rglob("*"):
        if path.is_file():
            as_url(place(f"{url}/{path.relative_to(folder).as_posix()}")).write(path.read_bytes())


def contents(url):
    folder = as_url(place(url))
    return {name: (folder / name).read() for name, _ in folder.files() if name != MANIFEST_NAME}


def restored(pipeline, source, output, **changes):
    resume = changes.pop("resume", False)
    inputs = find_inputs([place(source)], place(output))
    options = replace(OPTIONS, **changes)
    return list(restore_files(pipeline, inputs, place(output), options, CornerDetector(), resume=resume))


def test_a_url_has_a_paths_parts():
    url = place("s3://bucket/trip//a b.tar.JPG/")
    assert str(url) == "s3://bucket/trip//a b.tar.JPG"
    assert (url.name, url.stem, url.suffix) == ("a b.tar.JPG", "a b.tar", ".JPG")
    assert str(url.parent.parent) == "s3://bucket/trip"
    assert str(url.parent.parent / "x/y.png") == "s3://bucket/trip/x/y.png"
    assert place("https://host/trip/a%20b.jpg?size=9").name == "a b.jpg"


def test_what_is_no_url_is_a_path(tmp_path):
    assert place("C:/a.png") == Path("C:/a.png")
    assert place(f"file://{tmp_path}/a%20b.png") == tmp_path / "a b.png"
    assert place(tmp_path) == tmp_path


def test_an_album_in_a_storage_is_restored_as_one_on_a_disk(pipeline, album, storage, tmp_path):
    upload(album, f"{storage}/in")
    here = restored(pipeline, album, tmp_path / "out")
    there = restored(pipeline, f"{storage}/in", f"{storage}/out")
    assert contents(f"{storage}/out") == contents(tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 4
    for one, other in zip(here, there, strict=True):
        assert Path(one["input"]).relative_to(album).as_posix() == other["input"].rpartition("/in/")[2]
        assert [one.get(key) for key in ("status", "faces", "outputs", "name")] == [
            other.get(key) for key in ("status", "faces", "outputs", "name")
        ]
    lines = (as_url(place(f"{storage}/out")) / MANIFEST_NAME).read().splitlines()
    assert [json.loads(line) for line in lines[1:]] == there


def test_a_run_in_a_storage_is_resumed_and_what_changed_is_done_again(pipeline, album, storage, monkeypatch):
    source, output = f"{storage}/in", f"{storage}/out"
    upload(album, source)
    restored(pipeline, source, output)
    before = contents(output)
    as_url(place(f"{source}/b.jpg")).write((album / "trip" / "c.webp").read_bytes())
    as_url(place(f"{output}/a.png")).write(b"damaged")
    again = restored(pipeline, source, output, resume=True)
    earlier = {record["input"].rpartition("/")[2] for record in again if record.get("earlier")}
    assert earlier == {"c.webp", "empty.png"}
    after = contents(output)
    assert after["a.png"] == before["a.png"]
    with pytest.raises(OptionError, match="seed 0, not 1"):
        restored(pipeline, source, output, resume=True, seed=1)


def test_a_manifest_in_a_storage_is_put_while_the_run_goes_on(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "_PUBLISHED_EVERY", 0.0)
    for number in range(3):
        save_photo(tmp_path / "in" / f"{number}.png", 30, seed=number)
    inputs = find_inputs([tmp_path / "in"], place("memory://going/out"))
    options = replace(OPTIONS, batch_size=1)
    running = restore_files(pipeline, inputs, place("memory://going/out"), options, CornerDetector())
    next(running)
    assert len(place(f"memory://going/out/{MANIFEST_NAME}").read().splitlines()) >= 2
    running.close()


def test_a_storage_is_walked_as_a_folder_is(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.webp", ".cache/d.png", "sub/out/e.tif"):
        place(f"memory://tree/{name}").write(b"x")
    said = []
    found = find_inputs([place("memory://tree/")], place("memory://tree/sub/out"), said.append)
    assert [(str(one.path), one.folder) for one in found] == [
        ("memory://tree/a.png", ""),
        ("memory://tree/b.JPG", ""),
        ("memory://tree/sub/c.webp", "sub"),
    ]
    assert set(said[0].removeprefix("memory://tree: left out ").split(", ")) == {
        "1 hidden folder",
        "1 hidden file",
        "1 .txt file",
    }
    assert [one.stamp for one in found] == [stamp(one.path) for one in found]
    pattern = find_inputs([place("memory://tree/*/*.webp"), place("memory://tree/*.bmp")], Path("out"))
    assert [(str(one.path), one.folder) for one in pattern[:1]] == [("memory://tree/sub/c.webp", "sub")]
    assert pattern[1].problem == "memory://tree/*.bmp: matches no file; check the pattern"
    with pytest.raises(OptionError, match="choose another --output"):
        find_inputs([place("memory://tree")], place("memory://tree/"))
    with pytest.raises(OptionError, match="--output"):
        find_inputs([place("memory://tree/a.png")], None)


def test_a_web_servers_listing_is_a_folder(pipeline, album, tmp_path):
    pytest.importorskip("aiohttp")
    (album / "a.png").rename(album / "a b.png")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(album))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        records = restored(pipeline, url, tmp_path / "there")
    finally:
        server.shutdown()
    assert sum(record["status"] == "done" for record in records) == 4
    restored(pipeline, album, tmp_path / "here")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_file_is_created_once_and_written_whole(storage):
    url = as_url(place(f"{storage}/x/lock"))
    assert [url.create(b"first"), url.create(b"second")] == [True, False]
    assert url.read() == b"first"
    url.write(b"third")
    assert url.read() == b"third"
    assert url.parent.names() == ["lock"]
    url.remove()
    url.remove()
    assert url.parent.names() == []


def test_a_place_that_cannot_be_reached_fails_alone_and_says_why(pipeline, album, bucket, tmp_path):
    missing, unlisted = f"{bucket}/none.jpg", "s3://no-such-bucket/in"
    inputs = find_inputs([place(missing), place(unlisted), album / "a.png"], tmp_path / "out")
    records = list(restore_files(pipeline, inputs, tmp_path / "out", OPTIONS, CornerDetector()))
    assert [record["status"] for record in records] == ["failed", "failed", "done"]
    assert records[0]["error"].startswith(f"{missing}: cannot be opened (")
    assert records[1]["error"].startswith(f"{unlisted}: cannot be listed (")
    with pytest.raises(OutputError, match=r"no-such-bucket.*cannot be written"):
        write(place("s3://no-such-bucket/out/a.png"), b"x")
    with pytest.raises(OptionError, match=r"nonsense://x: .*check how it begins"):
        place("nonsense://x").read()
    with pytest.raises(ImageError, match=r"none.jpg: cannot be opened"), as_file(place(missing)):
        pass


def test_the_command_reads_and_writes_urls(album, s3_server, bucket):
    upload(album, f"{bucket}/in")
    command = ["restore", f"{bucket}/in/a.png", "--aligned", "--device", "cpu", "--dtype", "float32"]
    result = CliRunner().invoke(app, [*command, "--method", "bicubic", "--output", f"{bucket}/out"])
    assert result.exit_code == 0, result.output
    assert f"{bucket}/in/a.png → {bucket}/out/a.png" in result.output.replace("\n", "")
    result = CliRunner().invoke(app, [*command, "--method", "bicubic", "--output", f"{bucket}/one.jpg"])
    assert result.exit_code == 0, result.output
    assert Url(f"{bucket}/one.jpg").read()[:2] == b"\xff\xd8"
    result = CliRunner().invoke(app, [*command, "--output", f"{bucket}/in/a.png"])
    assert "is the input, which is never written over" in result.output.replace("\n", " ")


def test_a_run_over_paths_loads_no_storage_library(album, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from faceprior.folders.inputs import find_inputs\n"
        "import faceprior.folders.run, faceprior.cli.app\n"
        f"find_inputs([Path({str(album)!r})], Path({str(tmp_path)!r}))\n"
        "print({'ray', 's3fs', 'aiohttp', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=True, capture_output=True, text=True)  # noqa: S603
    assert done.stdout.strip() == "set()"


def test_a_storage_that_is_throttled_may_be_asked_again_and_a_missing_file_not(monkeypatch):
    url = place("memory://throttled/a.png")
    with pytest.raises(ImageError) as missing:
        read(url)
    url.write(b"x")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", Mock(side_effect=OSError("SlowDown")))
    with pytest.raises(UnreachableError, match="SlowDown"):
        read(url)
    assert not isinstance(missing.value, UnreachableError)
