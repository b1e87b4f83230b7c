import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from faceprior.images import read_metadata
from served import EXAMPLE, comes_true, serving


def run(command, cwd=None):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603


PAGE = Path(__file__).parents[1] / "docs/serve.md"


pytestmark = pytest.mark.slow


@contextmanager
def ended_without_a_trace(folder, *options, ended_by):
    """A server that got a picture, and leaves nothing behind whichever signal ends it; starting one takes long."""
    with serving(folder, *options, ended_by=ended_by) as server:
        httpx.post(f"{server.address}/gradio_api/upload", files={"files": ("a.webp", EXAMPLE.read_bytes())})
        assert list(folder.glob("faceprior-*"))
        yield server
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with ended_without_a_trace(
        tmp_path_factory.mktemp("server"), "--max-upload", "1", "--time-limit", "60", ended_by=signal.SIGINT
    ) as server:
        yield server


@pytest.fixture
def client(served, tmp_path):
    return Client(served.address, verbose=False, download_files=str(tmp_path))


def test_it_says_that_it_is_well(served):
    answer = httpx.get(f"{served.address}/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_it_is_not_reached_from_other_machines(served):
    import psutil

    connections = psutil.Process(served.process.pid).net_connections("inet")
    assert {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_a_program_finds_faces_and_restores_the_photograph(client):
    found = client.predict(photo=handle_file(EXAMPLE), api_name="/find_faces")
    assert [face["number"] for face in found["faces"]] == [1]
    files, report = client.predict(photo=handle_file(EXAMPLE), upscale="2", steps=2, samples=2, api_name="/restore")
    assert [Path(file).name for file in files] == [
        "example-restored.webp",
        "example-restored-2.webp",
        "example-restored-mean.webp",
    ]
    assert Image.open(files[0]).size == (224, 224)
    assert read_metadata(files[0])["options"]["steps"] == report["options"]["steps"] == 2
    assert len(report["faces"][0]["lr_consistency"]) == 2
    assert report["notes"] == []
    assert "views" not in report


def test_a_report_has_the_notes_of_the_command_line(client, tmp_path):
    Image.open(EXAMPLE).convert("CMYK").save(tmp_path / "printed.jpg")
    _, report = client.predict(photo=handle_file(tmp_path / "printed.jpg"), steps=2, api_name="/restore")
    assert report["notes"] == ["CMYK turned into RGB without a profile"]
    assert report["kind"] == "photo"


@pytest.mark.parametrize(
    ("name", "values", "status", "words"),
    [
        ("restore", {"strenth": 0.5}, 422, "/restore has no parameter strenth; did you mean strength?"),
        ("restore", {"zzz": 0.5}, 422, "/restore has no parameter zzz; it has photo, faces, preset"),
        ("find_faces", {"scale": "4"}, 422, "/find_faces has no parameter scale"),
        ("restore", {"scale": "5"}, 422, "scale is '5'; choose auto, 4, 8, 16"),
        ("restore", {"preset": "alchemy"}, 422, "neither a preset nor a method"),
        ("restor", {}, 404, "there is no /restor here; there are /find_faces, /restore"),
    ],
    ids=["misspelled", "unknown", "of the other endpoint", "out of range", "no such preset", "no such endpoint"],
)
def test_a_call_that_cannot_be_meant_is_refused_by_name(served, name, values, status, words):
    answer = httpx.post(f"{served.address}/gradio_api/call/v2/{name}", json=values)
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_folder_is_not_opened_and_the_clean_up_goes_on(tmp_path):
    with ended_without_a_trace(tmp_path, "--keep", "0.2", ended_by=signal.SIGHUP) as server:
        upload = {"files": ("a.webp", EXAMPLE.read_bytes())}
        place = Path(httpx.post(f"{server.address}/gradio_api/upload", files=upload).json()[0])
        for path in (place.parent, place.parents[1], "/"):
            photo = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
            answer = httpx.post(f"{server.address}/gradio_api/call/v2/find_faces", json={"photo": photo})
            assert answer.status_code == 400
        assert comes_true(lambda: not place.exists())


def test_behind_a_prefix_programs_find_everything(tmp_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with ended_without_a_trace(folder, "--root-path", "/faces", ended_by=signal.SIGTERM) as server:
        assert '<base href="/faces/">' in httpx.get(server.address).text
        for address in (server.address, f"{server.address}/faces"):
            client = Client(address, verbose=False, download_files=str(tmp_path))
            files, _ = client.predict(photo=handle_file(EXAMPLE), steps=1, api_name="/restore")
            assert Image.open(files[0]).size == (448, 448)


def test_the_examples_of_the_documentation_run(served, tmp_path):
    blocks = dict(re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text().split("## For programs")[1], re.DOTALL))
    Image.open(EXAMPLE).save(tmp_path / "photo.jpg")
    for language, start in (("python", [sys.executable, "-c"]), ("sh", ["bash", "-euc"])):
        text = blocks[language].replace("http://127.0.0.1:7860", served.address)
        done = run([*start, text], cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "lr_consistency" in done.stdout
    assert Image.open(tmp_path / "restored.jpg").format == "JPEG"


def test_cancelling_over_http_stops_the_sampler(served, client):
    job = client.submit(photo=handle_file(EXAMPLE), preset="ddnm", samples=8, api_name="/restore")
    assert comes_true(job.outputs)
    job.cancel()
    assert served.falls_idle()
    assert client.predict(photo=handle_file(EXAMPLE), steps=1, api_name="/restore")[1]["seed"] == 0


def test_a_program_that_goes_away_stops_its_sampler(served):
    stays = Client(served.address, verbose=False)
    with httpx.Client(base_url=f"{served.address}/gradio_api", timeout=120) as program:
        place = program.post("/upload", files={"files": ("a.webp", EXAMPLE.read_bytes())}).json()[0]
        photo = {"path": place, "meta": {"_type": "gradio.FileData"}}
        event = program.post("/call/v2/restore", json={"photo": photo, "preset": "ddnm", "samples": 8}).json()
        with program.stream("GET", f"/call/restore/{event['event_id']}") as answer:
            next(answer.iter_lines())
    begun = served.seconds
    stays.predict(photo=handle_file(EXAMPLE), steps=1, api_name="/restore")
    assert served.seconds - begun < 40  # all of the abandoned one's steps take minutes


@pytest.mark.parametrize(
    "place",
    ["/etc/passwd", str(EXAMPLE), "pyproject.toml", "%2Fetc%2Fpasswd", "../../../etc/passwd", "https://example.com/"],
)
def test_no_file_outside_its_own_folder_is_served(served, place):
    assert httpx.get(f"{served.address}/gradio_api/file={place}").status_code in (400, 403, 404)


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["plain", "as a file"])
def test_no_file_outside_its_own_folder_is_restored(served, meta):
    call = {"photo": {"path": str(EXAMPLE), **meta}}
    base = f"{served.address}/gradio_api/call"
    event = httpx.post(f"{base}/v2/restore", json=call)
    answer = httpx.get(f"{base}/restore/{event.json()['event_id']}") if event.status_code == 200 else event
    assert "event: error" in answer.text or answer.status_code >= 400
    assert "webp" not in answer.text


def test_a_large_upload_and_a_wrong_file_are_refused(served):
    upload = f"{served.address}/gradio_api/upload"
    assert httpx.post(upload, files={"files": ("a.png", b"\0" * 1_200_000)}).status_code == 413
    assert httpx.post(upload, files={"files": ("a.png", b"Dear all")}).status_code == 415
    assert not [path for path in served.files() if path.name == "a.png"]


def test_the_page_loads_nothing_from_elsewhere(served):
    page = httpx.get(served.address).text
    own = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert not [place for place in own if re.match(r"(https?:)?//", place) and not place.startswith(served.address)]


def test_with_auth_nothing_but_health_is_open(tmp_path):
    with serving(tmp_path, "--auth", "anna:secret") as server:
        assert httpx.get(f"{server.address}/healthz").status_code == 200
        for path in ("/config", "/gradio_api/info"):
            assert httpx.get(server.address + path).status_code == 401
        upload = {"files": ("a.webp", EXAMPLE.read_bytes())}
        assert httpx.post(f"{server.address}/gradio_api/upload", files=upload).status_code == 401
        with pytest.raises(Exception, match=r"(?i)auth|credentials|login"):
            Client(server.address, verbose=False, auth=("anna", "wrong"))
        known = Client(server.address, verbose=False, auth=("anna", "secret"))
        files, _ = known.predict(photo=handle_file(EXAMPLE), steps=1, api_name="/restore")
        assert np.asarray(Image.open(files[0])).shape == (448, 448, 3)


def test_uploads_and_results_are_deleted_in_time_and_all_at_the_end(tmp_path):
    with serving(tmp_path, "--keep", "0.2") as server:
        client = Client(server.address, verbose=False)
        client.predict(photo=handle_file(EXAMPLE), steps=1, api_name="/restore")
        assert server.files()
        assert comes_true(lambda: not server.files())
    assert not list(tmp_path.glob("faceprior-*"))


def test_a_port_that_is_taken_is_an_error_that_names_the_remedy(served):
    port = served.address.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "faceprior", "serve", "--port", port]
    done = run(command)
    assert done.returncode == 2
    assert "choose another --port" in done.stderr
