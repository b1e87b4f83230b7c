"""The page in a real browser: Debian's Chromium on the embedded prior."""

import io
import re
import shutil

import httpx
import numpy as np
import pytest
from PIL import Image

from served import EXAMPLE, serving

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
DONE = re.compile(r"Done in [\d.]+ seconds")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), "--max-upload", "2") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt install chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """Someone who sees the page; `elsewhere` has all requests to other hosts, `complaints` what the browser says."""

    def __init__(self, browser, address, **context):
        self.elsewhere, self.complaints = [], []
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("request", lambda request: self._note(request.url, address))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.page.get_by_text("One face was found").wait_for()

    def _note(self, url, address):
        if not url.startswith((address, "data:", "blob:")):
            self.elsewhere.append(url)

    def number(self, label, value):
        field = self.page.get_by_label(label, exact=True)
        field.fill(str(value))
        field.press("Enter")
        field.press("Tab")

    def choose(self, group, name):
        self.page.locator(f"#{group}").get_by_text(name, exact=True).click()

    def start(self, samples=1):
        self.number("number input for Samples", samples)
        self.page.get_by_role("button", name="Restore").click()

    def wait(self):
        self.page.locator("#progress").get_by_text(DONE).wait_for()

    def restore(self, samples=1):
        self.start(samples)
        self.page.locator("#progress").get_by_text(DONE).wait_for(state="detached")
        self.wait()
        return self.result()

    def result(self):
        """The picture right of the line."""
        address = self.page.locator("#slider img").nth(1).get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(httpx.get(address).content)).convert("RGB"))

    def upload(self, path):
        self.page.get_by_role("button", name="Remove Image").click()
        self.page.locator("#photo input[type=file]").set_input_files(path)

    @property
    def command(self):
        return self.page.get_by_label("Command line", exact=True).input_value()


@pytest.fixture
def visitor(browser, served):
    someone = Visitor(browser, served.address, viewport={"width": 1280, "height": 1000})
    yield someone
    someone.context.close()
    assert not someone.elsewhere
    assert not someone.complaints


@pytest.fixture(scope="module")
def two_faces(tmp_path_factory):
    """The example twice, next to itself."""
    example = Image.open(EXAMPLE).convert("RGB")
    both = Image.new("RGB", (2 * example.width, example.height))
    both.paste(example, (0, 0))
    both.paste(example, (example.width, 0))
    path = tmp_path_factory.mktemp("photos") / "two people.jpg"
    both.save(path, quality=95)
    return path


def difference(first, second):
    """In levels of 255, where the two pictures have one size."""
    return np.abs(first.astype(int) - second).mean() if first.shape == second.shape else np.inf


def test_the_example_is_restored_while_one_looks_on(visitor):
    visitor.start(samples=2)
    emerging = visitor.page.locator(".emerging img")
    emerging.first.wait_for()
    early = emerging.first.get_attribute("src")
    assert visitor.page.get_by_role("progressbar").is_visible()
    visitor.wait()
    assert early.startswith("data:image/jpeg")
    assert emerging.count() == 0
    before = visitor.page.locator("#slider img").nth(0).get_attribute("src")
    pixels = np.asarray(Image.open(io.BytesIO(httpx.get(before).content)).convert("RGB"))
    assert difference(pixels, visitor.result()) > 0.3
    assert visitor.page.get_by_text(re.compile(r"differs from the photo by .* of 255 levels")).is_visible()
    assert visitor.page.get_by_text("Not known from the photo:").is_visible()


def test_a_photo_is_uploaded_a_face_chosen_and_the_result_downloaded(visitor, two_faces):
    visitor.upload(two_faces)
    visitor.page.get_by_text("2 faces were found").wait_for()
    faces = visitor.page.locator("#faces").get_by_role("checkbox")
    assert [faces.nth(i).is_checked() for i in range(2)] == [True, True]
    image = visitor.page.locator("#photo img").first
    box = image.bounding_box()
    centre = {"x": box["width"] * 0.25, "y": box["height"] * 0.36}  # of the left face
    image.click(position=centre)
    visitor.page.wait_for_function("document.querySelectorAll('#faces input:checked').length == 1")
    both = visitor.restore()
    left = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
    assert re.search(r"--face [12]", visitor.command)
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name="Download", exact=True).click()
    picture = Image.open(download.value.path())
    assert (picture.format, picture.size) == ("JPEG", (4 * 224, 4 * 112))
    assert difference(*left) > 0.3  # one of two equal halves was restored


def test_a_photo_is_taken_with_the_camera(browser, served):
    someone = Visitor(browser, served.address, permissions=["camera"])
    someone.page.get_by_role("button", name="Remove Image").click()
    someone.page.get_by_text("There is no photo yet").wait_for()
    someone.page.get_by_role("button", name="Capture from camera").click()
    someone.page.get_by_text("Click to Access Webcam").click()
    someone.page.get_by_role("button", name="capture photo").click()
    someone.page.get_by_text("No face was found").wait_for()  # Chromium's camera shows a pattern
    someone.context.close()


def test_the_keyboard_chooses_faces_too(visitor, two_faces):
    visitor.upload(two_faces)
    visitor.page.get_by_text("2 faces were found").wait_for()
    boxed = visitor.page.locator("#photo img").first.get_attribute("src")
    second = visitor.page.locator("#faces").get_by_role("checkbox").nth(1)
    second.focus()
    second.press("Space")
    assert not second.is_checked()
    visitor.page.wait_for_function("before => document.querySelector('#photo img').src != before", arg=boxed)


def test_the_line_is_dragged_and_moved_with_the_arrow_keys(visitor):
    visitor.restore()
    picture = visitor.page.locator("#slider img").nth(1)
    picture.scroll_into_view_if_needed()
    places = [picture.get_attribute("style")]
    handle = visitor.page.locator("#slider .outer").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    visitor.page.mouse.move(x, y)
    visitor.page.mouse.down()
    visitor.page.mouse.move(x + 100, y, steps=5)
    visitor.page.mouse.up()
    places.append(picture.get_attribute("style"))
    line = visitor.page.get_by_label("range slider for Line")
    line.focus()
    for _ in range(3):
        line.press("ArrowLeft")
    visitor.page.wait_for_timeout(300)
    places.append(picture.get_attribute("style"))
    assert len(set(places)) == 3


def test_every_control_changes_the_result(visitor):
    page = visitor.page
    page.get_by_role("button", name="Advanced").click()
    visitor.number("Steps", 5)  # quick
    visitor.number("number input for Faithful ↔ Detailed", 0.5)  # so that s has something to act on
    last = visitor.restore()
    changes = {
        "Strength": lambda: visitor.number("number input for Strength", 0.5),
        "Scale": lambda: visitor.choose("scale", "×16"),
        "Enlarge": lambda: visitor.choose("enlarge", "×2"),
        "Detailed": lambda: visitor.number("number input for Faithful ↔ Detailed", 1),
        "Seed": lambda: visitor.number("Seed", 3),
        "Steps": lambda: visitor.number("Steps", 3),
        "Stride": lambda: visitor.choose("stride", "8"),
        "Edge exponent": lambda: visitor.number("number input for Edge exponent (s)", 0),
        "Fresh noise": lambda: visitor.number("number input for Fresh noise (η)", 1),
        "Corrector": lambda: page.get_by_label("Corrector (CRT)").uncheck(),
    }
    for name, change in changes.items():
        change()
        page.wait_for_timeout(300)
        new = visitor.restore()
        assert difference(last, new) > 0.05, name
        last = new


def test_another_method_greys_out_what_it_does_not_know(visitor):
    visitor.page.get_by_role("button", name="Advanced").click()
    method = visitor.page.get_by_label("Method")
    method.click()
    visitor.page.get_by_role("option", name=re.compile("^ddnm")).click()
    detailed = visitor.page.get_by_label("number input for Faithful ↔ Detailed")
    visitor.page.wait_for_function("document.querySelector('#detailed input').disabled")
    assert detailed.is_disabled()
    assert visitor.page.get_by_label("Steps", exact=True).input_value() == "100"
    assert visitor.page.get_by_label("number input for Fresh noise (η)").input_value() == "0.85"


def test_a_sample_is_chosen_and_looked_at_closely(visitor):
    first = visitor.restore(samples=2)
    source = visitor.page.locator("#slider img").nth(1)
    before = source.get_attribute("src")
    visitor.page.get_by_role("button", name="Thumbnail 2 of 2").click()
    changed = "before => document.querySelectorAll('#slider img')[1].src != before"
    visitor.page.wait_for_function(changed, arg=before)
    second = visitor.result()
    assert 0 < difference(first, second) < 20
    before = source.get_attribute("src")
    visitor.choose("view", "Face 1")
    visitor.page.wait_for_function(changed, arg=before)
    assert visitor.result().shape[:2] == (512, 512)


def test_stop_stops_the_sampler(visitor, served):
    visitor.page.get_by_role("button", name="Advanced").click()
    visitor.number("Steps", 100)
    visitor.start(samples=8)
    visitor.page.locator(".emerging img").first.wait_for()
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.page.locator("#progress").get_by_text("Stopped.").wait_for()
    visitor.page.wait_for_timeout(2000)
    before = served.seconds
    visitor.page.wait_for_timeout(2000)
    assert served.seconds - before < 0.5  # a sampler at work takes all of a core
    assert visitor.page.locator("#progress").get_by_text("Stopped.").is_visible()


def test_a_wrong_file_is_refused_in_words(visitor, tmp_path):
    (tmp_path / "letter.png").write_text("Dear all")
    visitor.upload(tmp_path / "letter.png")
    visitor.page.get_by_text("is not an image that Pillow can read").first.wait_for()


def test_a_file_that_is_too_large_is_refused_in_words(visitor, tmp_path):
    (tmp_path / "large.png").write_bytes(b"\0" * 3_000_000)
    visitor.upload(tmp_path / "large.png")
    visitor.page.get_by_text(re.compile("exceed|larger than|too large", re.IGNORECASE)).first.wait_for()


def test_two_visitors_at_once_get_their_own_results(browser, served):
    visitors = [Visitor(browser, served.address) for _ in range(2)]
    for seed, someone in enumerate(visitors):
        someone.number("number input for Faithful ↔ Detailed", 1)
        someone.number("Seed", seed)
        someone.start()
    for someone in visitors:
        someone.wait()
    results = [someone.result() for someone in visitors]
    assert [re.findall(r"--seed (\d+)", someone.command) for someone in visitors] == [[], ["1"]]
    assert difference(*results) > 0.3
    assert difference(visitors[0].restore(), results[0]) == 0
    for someone in visitors:
        someone.context.close()


def test_the_command_line_is_copied(browser, served):
    someone = Visitor(browser, served.address, permissions=["clipboard-read", "clipboard-write"])
    someone.restore()
    someone.page.get_by_role("button", name="Copy command line").click()
    copied = someone.page.evaluate("navigator.clipboard.readText()")
    assert copied == someone.command
    assert copied.startswith("faceprior restore example.webp ")
    someone.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_and_can_be_read(browser, served, width, scheme):
    someone = Visitor(browser, served.address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    someone.restore()
    assert someone.page.evaluate("document.documentElement.scrollWidth") <= width
    background, text = (
        np.array([int(value) for value in re.findall(r"\d+", colour)[:3]])
        for colour in someone.page.evaluate(
            "[getComputedStyle(document.querySelector('gradio-app')).backgroundColor,"
            " getComputedStyle(document.querySelector('#intro p')).color]"
        )
    )
    assert bool(background.mean() < 80) is (scheme == "dark")
    assert abs(background.mean() - text.mean()) > 120
    someone.context.close()


def test_everything_that_can_be_set_has_a_name(visitor):
    visitor.page.get_by_role("button", name="Advanced").click()
    visitor.restore(samples=2)
    nameless = visitor.page.evaluate(
        """() => [...document.querySelectorAll("main input:not([type=file]), main button, main textarea")]
        .filter((each) => each.offsetParent !== null)
        .filter((each) => !(each.getAttribute("aria-label") || each.title || each.innerText.trim()
            || each.closest("label")?.innerText.trim() || each.labels?.length || each.querySelector("img[alt]")?.alt))
        .map((each) => each.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
