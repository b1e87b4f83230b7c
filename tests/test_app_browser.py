"""The page in a real browser: Debian's Chromium on the embedded prior."""

import io
import re
import shutil
import time

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

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


def until(page, condition, seconds=120):
    """Wait until a condition holds: an expression, or something to call."""
    holds = condition if callable(condition) else lambda: page.evaluate(condition)
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert holds(), condition


class Visitor:
    """Someone who sees the page; `elsewhere` has all requests to other hosts, `complaints` what the browser says."""

    def __init__(self, browser, address, **context):
        self.address, self.elsewhere, self.complaints = address, [], []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **context})
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("request", lambda request: self._note(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        self.until("document.querySelector('#method').options.length > 1")
        self.page.evaluate("document.querySelector('#steps').value = 3")  # quick

    def until(self, expression):
        """Wait until an expression holds; Playwright's own way evaluates text, which the page's policy forbids."""
        until(self.page, expression)

    def _note(self, url):
        if not url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(url)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def open_example(self):
        self.button("Try it with an example").click()
        self.page.get_by_text("One face was found").wait_for()
        return self

    def upload(self, *paths):
        self.page.locator("#file").set_input_files(paths)
        self.settled()

    def settled(self):
        self.until("document.body.ariaBusy === 'false'")

    def restore(self, name="Restore"):
        self.button(name).click()
        self.settled()
        self.page.get_by_text(DONE).wait_for()
        return self.result()

    def set(self, name, value):
        field = self.page.locator(f"#settings [name={name}]")
        if field.evaluate("element => element.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))

    def picture(self, selector):
        address = self.page.locator(selector).evaluate("element => element.src")
        return np.asarray(Image.open(io.BytesIO(httpx.get(address).content)).convert("RGB"))

    def result(self):
        """The picture right of the line."""
        return self.picture("#compare .after")

    @property
    def command(self):
        return self.page.locator("#command").input_value()

    @property
    def error(self):
        return self.page.locator("#error").inner_text()


@pytest.fixture
def visit(browser, served):
    """Lets people see the page; they leave it after the test, and what they began ends."""
    visitors = []

    def visit(**context):
        visitors.append(Visitor(browser, served.address, **context))
        return visitors[-1]

    yield visit
    for someone in visitors:
        someone.context.close()
    assert not [address for someone in visitors for address in someone.elsewhere]
    assert not [complaint for someone in visitors for complaint in someone.complaints]


@pytest.fixture
def visitor(visit):
    return visit()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


@pytest.fixture(scope="module")
def two_faces(photos):
    """The example twice, next to itself."""
    example = Image.open(EXAMPLE).convert("RGB")
    both = Image.new("RGB", (2 * example.width, example.height))
    both.paste(example, (0, 0))
    both.paste(example, (example.width, 0))
    both.save(photos / "two people.jpg", quality=95)
    return photos / "two people.jpg"


@pytest.fixture(scope="module")
def no_face(photos):
    grey = np.tile(np.linspace(0, 255, 160, dtype=np.uint8), (160, 1))
    Image.fromarray(grey).save(photos / "sky.png")
    return photos / "sky.png"


def difference(first, second):
    """In levels of 255, where the two pictures have one size."""
    return np.abs(first.astype(int) - second).mean() if first.shape == second.shape else np.inf


# ------------------------------------------------------------------ from the photo to the result


def test_nothing_but_a_place_for_a_photo_is_there_at_first(visitor):
    page = visitor.page
    assert page.get_by_text("Drop a photo here").is_visible()
    assert [button.inner_text() for button in page.locator("button").all() if button.is_visible()] == [
        "Try it with an example",
        "Take one with the camera",
    ]
    assert not page.locator("#with-photo").is_visible()
    assert not page.locator("#output").is_visible()


def test_the_example_is_restored_while_one_looks_on_and_shown_from_near(visitor):
    visitor.open_example()
    seen = visitor.page.evaluate("""() => { window.seen = []; new MutationObserver(() => {
        const image = document.querySelector("#emerging img"); if (image) window.seen.push(image.src);
    }).observe(document.querySelector("#emerging"), {childList: true}); }""")
    after = visitor.restore()
    seen = visitor.page.evaluate("[...new Set(window.seen)]")
    assert len(seen) > 1
    assert all(address.startswith("data:image/jpeg") for address in seen)
    before = visitor.picture("#compare .before")
    assert before.shape[:2] == after.shape[:2] == (640, 640)
    assert difference(before, after) > 0.3
    assert visitor.page.locator("#views").get_by_label("Face 1").is_checked()
    assert visitor.page.get_by_text(re.compile(r"differs from the photo by .* of 255 levels")).is_visible()
    assert not visitor.page.locator("#tries").is_visible()
    visitor.page.get_by_label("Whole photo").check()
    assert visitor.result().shape[:2] == (448, 448)  # enlarged to what the face needs
    assert "--upscale auto" in visitor.command


def test_others_are_tried_afterwards_and_one_is_chosen(visitor):
    first = visitor.open_example().restore()
    visitor.restore("Try others")
    assert difference(first, visitor.result()) == 0  # the first try is the one that was there
    tries = visitor.page.get_by_role("group", name="Tries").get_by_role("radio")
    assert tries.count() == 4
    tries.nth(0).focus()
    visitor.page.keyboard.press("ArrowRight")
    assert tries.nth(1).is_checked()
    assert 0 < difference(first, visitor.result()) < 20
    assert visitor.page.locator("#download").get_attribute("download") == "example-restored-2.webp"
    assert visitor.page.get_by_text("Not known from the photo", exact=True).is_visible()
    assert visitor.page.get_by_text(re.compile("With a probability of 90 % the true face is within")).is_visible()
    assert visitor.picture("#doubt img").max() > 0


def test_a_photo_is_uploaded_a_face_chosen_and_the_result_downloaded(visitor, two_faces):
    visitor.upload(two_faces)
    visitor.page.get_by_text("2 faces were found").wait_for()
    faces = visitor.page.locator("#faces").get_by_role("checkbox")
    assert [faces.nth(i).is_checked() for i in range(2)] == [True, True]
    left = visitor.page.get_by_role("checkbox", name=re.compile("left"))
    left.focus()
    visitor.page.keyboard.press("Space")
    assert not left.is_checked()
    visitor.restore()
    visitor.page.get_by_label("Whole photo").check()
    both = visitor.result()
    assert re.search(r"--face [12]", visitor.command)
    assert difference(both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]) > 0.3  # one of equal halves
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("link", name="Download two people-restored.jpg").click()
    assert download.value.suggested_filename == "two people-restored.jpg"
    picture = Image.open(download.value.path())
    assert (picture.format, picture.size) == ("JPEG", (4 * 224, 4 * 112))


def test_several_photos_are_restored_at_once(visitor, two_faces, no_face):
    visitor.upload(two_faces, no_face, EXAMPLE)
    photos = visitor.page.get_by_role("group", name="Photos").get_by_role("radio")
    assert photos.count() == 3
    visitor.button("Restore all 2 photos").click()
    visitor.settled()
    downloads = []
    visitor.page.on("download", lambda download: downloads.append(download.suggested_filename))
    visitor.button("Download all").click()
    visitor.settled()
    until(visitor.page, lambda: len(downloads) == 2)
    assert sorted(downloads) == ["example-restored.webp", "two people-restored.jpg"]
    photos.nth(1).check()
    assert visitor.page.get_by_text("No face was found").is_visible()
    assert not visitor.page.locator("#output").is_visible()
    visitor.page.keyboard.press("ArrowLeft")
    assert visitor.page.get_by_role("link", name="Download two people-restored.jpg").is_visible()


def test_a_refused_file_among_several_has_no_broken_picture(visitor, no_face, tmp_path):
    (tmp_path / "letter.png").write_text("Dear all")
    visitor.upload(no_face, tmp_path / "letter.png")
    tiles = visitor.page.get_by_role("group", name="Photos").locator("label")
    assert [tile.locator("img").count() for tile in tiles.all()] == [1, 0]
    assert "letter.png" in tiles.nth(1).inner_text()


def test_where_nothing_can_be_dropped_a_photo_is_chosen(visit):
    someone = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert someone.page.get_by_text("Choose a photo").is_visible()
    assert not someone.page.get_by_text("Drop").is_visible()


def test_a_photo_is_taken_with_the_camera(visit):
    someone = visit(permissions=["camera"])
    someone.button("Take one with the camera").click()
    someone.until("document.querySelector('video').videoWidth > 0")
    someone.button("Take the photo").click()
    someone.page.get_by_text("No face was found").wait_for()  # Chromium's camera shows a pattern
    assert someone.button("Restore").is_disabled()


# ------------------------------------------------------------------ the page shows what it restores


def test_a_former_photo_is_gone_as_soon_as_another_comes(visitor, two_faces):
    visitor.open_example().restore()
    page = visitor.page
    page.route("**/gradio_api/upload", lambda route: None)  # an upload that takes its time
    page.locator("#file").set_input_files(two_faces)
    assert page.get_by_text("Uploading").is_visible()
    assert not page.locator("#output").is_visible()
    assert page.locator("#faces input").count() == 0
    assert visitor.button("Restore").is_disabled()
    assert page.locator("#settings [name=strength]").is_disabled()


def test_a_refused_file_leaves_no_former_photo_behind(visitor, tmp_path):
    visitor.open_example().restore()
    (tmp_path / "letter.png").write_text("Dear all")
    visitor.upload(tmp_path / "letter.png")
    assert "letter.png: is not a picture that can be read" in visitor.error
    (tmp_path / "large.png").write_bytes(b"\0" * 3_000_000)
    visitor.upload(tmp_path / "large.png")
    assert visitor.error == "large.png is larger than 2 MB. Reduce it first."
    assert not visitor.page.locator("#with-photo").is_visible()
    assert not visitor.page.locator("#output").is_visible()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 503, "body": "{}"}, "Too many visitors are waiting"),
        ({"status": 500, "body": "<html>Internal Server Error</html>"}, "The server could not do this; try again."),
        ({"status": 422, "json": {"error": "steps is 0"}}, "Steps is 0."),
        (None, "The server does not answer."),
    ],
    ids=["a full queue", "a broken server", "a wrong value", "no server"],
)
def test_an_error_says_what_to_do_and_hides_no_result(visitor, fault, words):
    result = visitor.open_example().restore()
    answer = (lambda route: route.abort()) if fault is None else (lambda route: route.fulfill(**fault))
    visitor.page.route("**/gradio_api/call/v2/restore", answer)
    visitor.button("Restore").click()
    visitor.settled()
    assert visitor.error.startswith(words)
    assert "50" not in visitor.error
    assert difference(visitor.result(), result) == 0
    assert visitor.button("Restore").is_enabled()


def test_what_cannot_be_improved_is_said_at_once_and_restore_is_off(visitor, no_face, photos):
    visitor.upload(no_face)
    assert visitor.page.get_by_text("No face was found. Choose a photo in which").is_visible()
    assert visitor.button("Restore").is_disabled()
    assert visitor.error == ""


def test_stop_stops_the_sampler(visitor, served):
    visitor.open_example()
    visitor.page.get_by_text("Advanced").click()
    visitor.set("method", "dps")
    visitor.button("Restore").click()
    visitor.page.locator("#emerging img").first.wait_for()
    assert visitor.page.get_by_role("progressbar").is_visible()
    assert visitor.page.locator("#settings [name=strength]").is_disabled()
    visitor.button("Stop").click()
    visitor.page.get_by_text("Stopped.").wait_for()
    assert served.falls_idle()


def test_who_waits_sees_their_place_in_line(visit):
    first, second, third = (visit().open_example() for _ in range(3))
    first.page.get_by_text("Advanced").click()
    first.set("method", "dps")
    first.button("Restore").click()
    first.page.locator("#emerging img").first.wait_for()
    second.button("Restore").click()
    second.page.get_by_text("Waiting: number 1 in line").wait_for()
    third.button("Restore").click()
    third.page.get_by_text("Waiting: number 2 in line").wait_for()
    assert not second.page.locator("#emerging img").count()
    first.button("Stop").click()
    second.page.get_by_text(DONE).wait_for()
    third.page.get_by_text(DONE).wait_for()


# ------------------------------------------------------------------ what can be set


def test_every_control_changes_the_result(visitor):
    visitor.open_example()
    page = visitor.page
    page.get_by_text("Advanced").click()
    last = visitor.restore()
    changes = {
        "look": lambda: page.locator("#looks").get_by_label("Detailed").check(),
        "strength": lambda: visitor.set("strength", 50),
        "scale": lambda: page.locator("#scale").get_by_label("×16").check(),
        "upscale": lambda: page.locator("#upscale").get_by_label("×2").check(),
        "seed": lambda: visitor.set("seed", 3),
        "steps": lambda: visitor.set("steps", 5),
        "stride": lambda: visitor.set("stride", 8),
        "eta": lambda: visitor.set("eta", 1),
        "corrector": lambda: page.locator("#corrector").uncheck(),
    }
    for name, change in changes.items():
        change()
        new = visitor.restore()
        assert difference(last, new) > 0.05, name
        last = new


def test_another_method_greys_out_what_it_does_not_know(visitor):
    visitor.open_example()
    visitor.page.get_by_text("Advanced").click()
    visitor.set("method", "ddnm")
    assert visitor.page.locator("#stride").is_disabled()
    assert visitor.page.locator("#steps").input_value() == "100"
    assert visitor.page.locator("#eta").input_value() == "0.85"
    visitor.set("method", "")
    assert visitor.page.locator("#stride").is_enabled()


def test_a_tick_removes_the_place_where_a_photo_was_taken(visitor, photos):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 0.0)
    Image.open(EXAMPLE).convert("RGB").save(photos / "placed.jpg", exif=exif)
    visitor.open_example()
    tick = visitor.page.get_by_label("without the place where it was taken")
    assert not tick.is_visible()
    visitor.upload(photos / "placed.jpg")
    for kept in (True, False):
        tick.set_checked(not kept)
        visitor.restore()
        content = httpx.get(visitor.page.locator("#download").evaluate("element => element.href")).content
        assert (ExifTags.IFD.GPSInfo in Image.open(io.BytesIO(content)).getexif()) is kept


def test_heic_is_offered_as_jpeg(visitor, photos):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.open(EXAMPLE).convert("RGB")).save(photos / "phone.heic")
    visitor.upload(photos / "phone.heic")
    assert visitor.page.locator("#photo img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    assert visitor.page.get_by_label("as JPEG").is_checked()
    visitor.restore()
    assert visitor.page.locator("#download").get_attribute("download") == "phone-restored.jpg"
    visitor.page.get_by_label("as JPEG").uncheck()
    visitor.restore()
    assert visitor.page.locator("#download").get_attribute("download") == "phone-restored.heic"


# ------------------------------------------------------------------ for everyone


def test_the_line_moves_with_the_arrow_keys_and_is_dragged(visitor):
    visitor.open_example().restore()
    line = visitor.page.get_by_role("slider", name="Line between before and after, in percent")
    place = "getComputedStyle(document.querySelector('#compare')).getPropertyValue('--at')"
    places = [visitor.page.evaluate(place)]
    line.focus()
    line.press("ArrowRight")
    places.append(visitor.page.evaluate(place))
    box = line.bounding_box()
    visitor.page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    places.append(visitor.page.evaluate(place))
    assert places[:2] == ["50%", "51%"]
    assert 20 < float(places[2].rstrip("%")) < 30


def test_the_keyboard_alone_restores_a_photo(visitor):
    page, focused = visitor.page, "document.activeElement.id"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "file"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")  # the example
    page.get_by_text("One face was found").wait_for()
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "restore":
            break
    page.keyboard.press("Enter")
    page.get_by_text(DONE).wait_for()
    page.locator("#upscale input").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#upscale input:checked").get_attribute("value") == "1"


def test_everything_that_can_be_set_has_a_name_and_choices_have_one_together(visitor):
    visitor.open_example().restore()
    visitor.page.get_by_text("Advanced").click()
    visitor.restore("Try others")
    visitor.page.get_by_text("How this was made").click()
    nameless = visitor.page.evaluate(
        """() => [...document.querySelectorAll("input, button, textarea, select, a")]
        .filter((each) => each.checkVisibility())
        .filter((each) => !(each.ariaLabel || each.innerText.trim() && each.tagName !== "SELECT"
            || [...each.labels ?? []].some((one) => one.innerText.trim() || one.querySelector("img[alt]")?.alt)))
        .map((each) => each.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    groups = visitor.page.evaluate(
        """() => [...document.querySelectorAll("input[type=radio]")].filter((each) => each.checkVisibility())
        .map((each) => each.closest("fieldset")?.querySelector("legend")?.innerText ?? each.outerHTML)"""
    )
    assert set(groups) == {
        "Faithful ↔ Detailed",
        "Enlarge the photo",
        "How much is missing (R/n)",
        "Look at",
        "Tries: choose one",
    }


def test_no_greek_stands_outside_of_advanced(visitor):
    visitor.open_example().restore("Restore")
    visitor.page.evaluate("document.querySelector('#advanced').remove()")
    assert not re.search("[α-ωΑ-Ω]", visitor.page.locator("body").inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_and_can_be_read(visit, width, scheme):
    someone = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    someone.open_example().restore()
    assert someone.page.evaluate("document.documentElement.scrollWidth") <= width
    background, text, theme, bar = (
        [int(value) for value in re.findall(r"\d+", colour)[:3]]
        for colour in someone.page.evaluate(
            """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector("#restore")).backgroundColor,
            getComputedStyle(document.querySelector("progress")).accentColor]"""
        )
    )
    assert bool(np.mean(background) < 80) is (scheme == "dark")
    assert abs(np.mean(background) - np.mean(text)) > 120
    assert bar == theme
    if width == 390:  # the result lies below the settings, and is scrolled to
        someone.until("document.querySelector('#compare').getBoundingClientRect().top < innerHeight")
        assert someone.page.evaluate("scrollY") > 300


def test_two_visitors_at_once_get_their_own_results(visit):
    visitors = [visit().open_example() for _ in range(2)]
    for seed, someone in enumerate(visitors):
        someone.page.get_by_text("Advanced").click()
        someone.set("seed", seed)
        someone.set("eta", 1)
        someone.button("Restore").click()
    for someone in visitors:
        someone.page.get_by_text(DONE).wait_for()
    results = [someone.result() for someone in visitors]
    assert [re.findall(r"--seed (\d+)", someone.command) for someone in visitors] == [[], ["1"]]
    assert difference(*results) > 0.05
    assert difference(visitors[0].restore(), results[0]) == 0


def test_the_command_line_is_copied(visit):
    someone = visit(permissions=["clipboard-read", "clipboard-write"])
    someone.open_example().restore()
    someone.page.get_by_text("How this was made").click()
    someone.button("Copy command line").click()
    copied = someone.page.evaluate("navigator.clipboard.readText()")
    assert copied == someone.command
    assert copied.startswith("faceprior restore example.webp ")


def test_a_password_is_asked_for_on_the_page(browser, tmp_path):
    with serving(tmp_path, "--auth", "anna:secret") as server:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(server.address)
        page.get_by_label("User name").fill("anna")
        for given in ("wrong", "secret"):
            page.get_by_label("Password").fill(given)
            page.get_by_role("button", name="Go on").click()
            if given == "wrong":
                page.get_by_text("That is not right; try again.").wait_for()
        until(page, "document.querySelector('#method').options.length > 1")
        page.get_by_role("button", name="Try it with an example").click()
        page.get_by_text("One face was found").wait_for()
        context.close()
