import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from typer.testing import CliRunner

av = pytest.importorskip("av")


from benchmarks.flicker import made_clip, measure_clip  # noqa: E402

from faceprior.cli.app import app  # noqa: E402
from faceprior.clips.container import Frame, read_clip_metadata, read_frames  # noqa: E402
from faceprior.clips.restore import ClipRestorer, noise_of, restore_clip, steady  # noqa: E402
from faceprior.clips.restore import _Past as Past  # noqa: E402
from faceprior.clips.tracks import find_cast  # noqa: E402
from faceprior.errors import DataError, VideoError  # noqa: E402
from faceprior.faces import DetectedFace  # noqa: E402
from faceprior.methods import find_preset  # noqa: E402
from faceprior.photographs import RestoreOptions  # noqa: E402
from faceprior.pipeline import FacePriorPipeline  # noqa: E402
from faceprior.priors.card import TIGHT_TEMPLATE  # noqa: E402
from faceprior.sampling import Initial  # noqa: E402
from synthetic_clips import REGULAR, shown, sound_of, write_clip  # noqa: E402

QUICK = RestoreOptions(preset=find_preset("default").with_options(steps=3), seed=5)


class NoseDetector:
    """Finds faces by their green noses; how many times it looked is counted."""

    name = "nose"

    def __init__(self, jitter=0.0):
        self.calls, self.pixels, self._random, self._jitter = 0, 0, np.random.default_rng(0), jitter

    def __call__(self, photo, min_face=24):
        self.calls, self.pixels = self.calls + 1, self.pixels + photo.width * photo.height
        red, green, blue = np.moveaxis(np.asarray(photo).astype(int), -1, 0)
        rows, columns = np.nonzero((green > red + 70) & (green > blue + 70))
        faces = []
        while len(rows):
            near = (abs(rows - rows[0]) < 16) & (abs(columns - columns[0]) < 16)
            x, y, side = columns[near].mean() + 0.5, rows[near].mean() + 0.5, 5.2 * np.sqrt(near.sum())
            rows, columns = rows[~near], columns[~near]
            points = (np.array(TIGHT_TEMPLATE) - TIGHT_TEMPLATE[2]) * side + (x, y)
            points += self._random.normal(0, self._jitter, (5, 2)) if self._jitter else 0
            box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
            faces.append(DetectedFace(box, [tuple(point) for point in points.tolist()], side))
        return sorted(faces, key=lambda face: -face.score)


def face(side=32, seed=0):
    """A blurred face with a green nose, (side, side, 3)."""
    coarse = np.random.default_rng(seed).integers(90, 170, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    nose = round(side / 5.2)
    left, top = round(side / 2 - nose / 2), round(side * 0.567 - nose / 2)
    picture.paste((40, 220, 40), (left, top, left + nose, top + nose))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(side / 24)))


def frames(places, noise=0.0, height=96, width=128, side=32):
    """Frames with faces at places: for each frame a list of (left, top, seed)."""
    random = np.random.default_rng(3)
    made = []
    for faces in places:
        frame = np.full((height, width, 3), 100, np.uint8)
        for left, top, seed in faces:
            frame[top : top + side, left : left + side] = face(side, seed)
        made.append(np.clip(frame + random.normal(0, noise, frame.shape), 0, 255).astype(np.uint8))
    return made


def seen(pictures):
    return [Frame(index, index / 25, picture) for index, picture in enumerate(pictures)]


STILL = [[(40, 30, 0)]] * 8
MOVING = [[(20 + 5 * index, 30, 0)] for index in range(8)]


@pytest.fixture(scope="module")
def pipeline(tiny, tmp_path_factory):
    prior = tiny.gaussian_prior()
    prior.card = replace(prior.card, template=TIGHT_TEMPLATE)
    return FacePriorPipeline(prior, tiny.corrector())


@pytest.fixture
def card(pipeline):
    return pipeline.prior.card


# --- who is seen


def test_a_face_is_followed_through_the_clip(card):
    cast = find_cast(seen(frames(MOVING)), NoseDetector(), card, RestoreOptions())
    assert (cast.tracks, cast.frames) == (1, 8)
    noses = [cast.places[index][0].landmarks[2, 0] for index in range(8)]
    assert np.diff(noses) == pytest.approx([5] * 7, abs=0.7)


def test_between_searches_only_the_surroundings_of_a_known_face_are_looked_at(card):
    detector = NoseDetector()
    find_cast(seen(frames(STILL * 5, height=400, width=400)), detector, card, RestoreOptions())
    assert detector.pixels < 0.45 * 40 * 400 * 400


def test_a_face_that_appears_later_is_found_too(card):
    places = [[(10, 10, 0)]] * 6 + [[(10, 10, 0), (80, 50, 1)]] * 12
    cast = find_cast(seen(frames(places)), NoseDetector(), card, RestoreOptions())
    assert cast.tracks == 2
    assert len(cast.places[2]) == 1
    assert len(cast.places[17]) == 2


def test_a_face_that_is_seen_only_for_a_moment_is_a_mistake(card):
    places = [[(10, 10, 0)] if index != 5 else [(10, 10, 0), (80, 50, 1)] for index in range(10)]
    assert find_cast(seen(frames(places)), NoseDetector(), card, RestoreOptions()).tracks == 1


def test_the_largest_face_is_chosen_for_the_whole_clip(card):
    pictures = frames([[(80, 50, 1)]] * 10)
    for picture in pictures:
        picture[10:54, 10:54] = face(44, 0)
    every = find_cast(seen(pictures), NoseDetector(), card, RestoreOptions())
    largest = find_cast(seen(pictures), NoseDetector(), card, RestoreOptions(faces=1))
    assert (every.tracks, largest.tracks) == (2, 1)
    assert all(places[0].landmarks[2, 0] < 60 for places in largest.places.values())
    assert find_cast(seen(pictures), NoseDetector(), card, RestoreOptions(faces=2)).tracks == 2


def test_a_clip_without_faces_has_no_cast(card):
    cast = find_cast(seen(frames([[]] * 4)), NoseDetector(), card, RestoreOptions())
    assert (cast.tracks, cast.frames, dict(cast.places)) == (0, 4, {})


# --- inputs averaged over time


def past_of(image, noise=None):
    return Past(image, image, torch.zeros(3, 32, 32), noise)


def test_noise_is_measured_and_averaged_away_where_the_face_stands_still(rng):
    clean, sigma = 0.2 * torch.randn(3, 16, 16, generator=rng), 0.04
    noisy = [clean + sigma * torch.randn(clean.shape, generator=rng) for _ in range(12)]
    assert noise_of(noisy[1] - noisy[0]) == pytest.approx(sigma, rel=0.25)
    past = past_of(noisy[0])
    for image in noisy[1:]:
        own = steady(image, past)
        past = Past(image, own.input, past.restored, own.noise)
    assert float((own.input - clean).std()) < 0.55 * sigma


def test_where_the_face_moves_the_new_frame_is_taken(rng):
    before = torch.zeros(3, 16, 16) + 0.01 * torch.randn(3, 16, 16, generator=rng)
    after = before + 0.01 * torch.randn(3, 16, 16, generator=rng)
    after[:, 4:12, 4:12] += 0.5
    own = steady(after, past_of(before, noise=0.01))
    assert torch.equal(own.input[:, 5:11, 5:11], after[:, 5:11, 5:11])
    assert float(own.still[:, 5:11, 5:11].max()) < 1e-3
    assert not torch.equal(own.input[:, :3, :3], after[:, :3, :3])


def test_a_first_frame_and_a_clip_without_noise_are_left_as_they_are(rng):
    image = torch.randn(3, 16, 16, generator=rng)
    assert torch.equal(steady(image, None).input, image)
    x = torch.linspace(0, 3, 16).expand(3, 16, 16)
    before, after = (0.5 * torch.sin(x + x.mT + shift) for shift in (0.0, 0.1))  # a smooth face that turns a little
    assert float((steady(after, past_of(before)).input - after).abs().max()) < 0.05 * float(
        (after - before).abs().max()
    )


def test_the_past_may_be_of_another_size(rng):
    assert steady(torch.randn(3, 16, 16, generator=rng), past_of(torch.zeros(3, 12, 12))).input.shape == (3, 16, 16)


# --- restored clips


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", frames(MOVING, noise=3), [REGULAR, 700] * 4, sound=True)


def test_a_clip_is_restored_with_its_sound_and_timing(pipeline, clip, tmp_path):
    record = restore_clip(pipeline, clip, tmp_path / "out.mp4", QUICK, NoseDetector())
    assert sound_of(tmp_path / "out.mp4") == sound_of(clip)
    assert shown(tmp_path / "out.mp4") == shown(clip)
    assert (record["frames"], record["tracks"], record["restored"]) == (8, 1, 8)
    before, after = list(read_frames(clip)), list(read_frames(tmp_path / "out.mp4"))
    assert after[0].pixels.shape == before[0].pixels.shape
    changed = [abs(b.pixels.astype(int) - a.pixels) for b, a in zip(before, after, strict=True)]
    for index, difference in enumerate(changed):
        inside = difference[36:56, 26 + 5 * index : 46 + 5 * index].mean()
        assert inside > 3 * difference[:, 100 if index < 4 else 0 :][:10].mean()
        assert difference[80:, :].mean() < 3  # only the encoder's


def test_how_a_clip_was_made_is_stored_in_it(pipeline, clip, tmp_path):
    restore_clip(pipeline, clip, tmp_path / "out.mp4", QUICK, NoseDetector())
    made = read_clip_metadata(tmp_path / "out.mp4")
    assert (made["seed"], made["method"], made["options"]["steps"]) == (5, "dpi", 3)
    assert (made["input"], made["detector"]) == ("clip.mp4", "nose")
    assert json.loads(json.dumps(made)) == made


def restored_frames(pipeline, card, pictures, seed):
    """Frames as they are before x264, whose own last bits are no promise of ours."""
    cast = find_cast(seen(pictures), NoseDetector(), card, RestoreOptions())
    restorer = ClipRestorer(pipeline, RestoreOptions(preset=QUICK.preset, seed=seed))
    return np.stack([restorer(picture, cast.places.get(index, ())) for index, picture in enumerate(pictures)])


def test_the_same_clip_gives_the_same_frames_and_another_seed_others(pipeline, card):
    pictures = frames(MOVING, noise=3)
    first = restored_frames(pipeline, card, pictures, 5)
    assert np.array_equal(first, restored_frames(pipeline, card, pictures, 5))
    assert not np.array_equal(first, restored_frames(pipeline, card, pictures, 6))


def test_a_frame_goes_on_from_what_was_sampled_not_from_what_was_finished(pipeline, card, monkeypatch):
    calls, restore = [], FacePriorPipeline.restore

    def watched(self, *arguments, initial):
        (found,) = restore(self, *arguments, initial=initial)
        calls.append((initial, found))
        return [found]

    monkeypatch.setattr(FacePriorPipeline, "restore", watched)
    restored_frames(pipeline, card, frames(STILL), 5)
    for (_, before), (initial, found) in itertools.pairwise(calls):
        assert torch.equal(initial.faces[0], before.mean)
        assert not torch.equal(found.images[0], found.mean)
    assert len(calls) > 2


def test_outside_of_the_faces_a_frame_stays_as_it_is(pipeline, card):
    pictures = frames(STILL, noise=3)
    changed = restored_frames(pipeline, card, pictures, 5) != np.stack(pictures)
    assert changed[:, 36:56, 46:66].mean() > 0.5
    assert not changed[:, :, 100:].any()


def test_a_clip_may_be_enlarged(pipeline, clip, tmp_path):
    options = RestoreOptions(upscale=2, preset=QUICK.preset)
    restore_clip(pipeline, clip, tmp_path / "out.mp4", options, NoseDetector())
    assert next(read_frames(tmp_path / "out.mp4")).pixels.shape == (192, 256, 3)


def test_a_clip_without_a_face_is_kept_and_it_is_said(pipeline, tmp_path):
    source = write_clip(tmp_path / "clip.mp4", frames([[]] * 3), sound=True)
    record = restore_clip(pipeline, source, tmp_path / "out.mp4", QUICK, NoseDetector())
    assert (record["tracks"], record["restored"]) == (0, 0)
    assert "no face found" in record["notes"]
    before, after = next(read_frames(source)), next(read_frames(tmp_path / "out.mp4"))
    assert abs(before.pixels.astype(int) - after.pixels).max() < 8


def test_stopping_leaves_nothing_behind(pipeline, clip, tmp_path):
    def stop(stage, done):
        if stage == "restoring" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_clip(pipeline, clip, tmp_path / "out.mp4", QUICK, NoseDetector(), stop)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_damaged_clip_is_refused(pipeline, clip, tmp_path):
    clip.write_bytes(clip.read_bytes()[:1000])
    with pytest.raises(VideoError, match=r"clip\.mp4: is damaged"):
        restore_clip(pipeline, clip, tmp_path / "out.mp4", QUICK, NoseDetector())


# --- flicker


def test_a_still_face_flickers_less_than_frame_by_frame(pipeline, tmp_path):
    pictures = frames(STILL, noise=4)
    source = write_clip(tmp_path / "clip.mp4", pictures, crf=10)
    figures = measure_clip(pipeline, source, NoseDetector(jitter=0.3), QUICK, lambda _index: frames(STILL[:1])[0])
    assert figures.flicker["tracked"] < 0.5 * figures.flicker["frame by frame"]
    assert figures.psnr.keys() == figures.flicker.keys() == {"input", "frame by frame", "tracked"}
    assert figures.true_flicker < figures.flicker["input"]


def test_flicker_needs_a_face(pipeline, tmp_path):
    source = write_clip(tmp_path / "clip.mp4", frames([[]] * 3))
    with pytest.raises(DataError, match="choose another clip"):
        measure_clip(pipeline, source, NoseDetector(), QUICK)


def test_made_clips_hold_the_face_in_view_and_move_as_they_say():
    pytest.importorskip("skimage")
    for motion, moves in (("still", False), ("moving", True)):
        with made_clip(motion, 6) as (path, truth):
            pictures = [frame.pixels for frame in read_frames(path)]
            assert bool(abs(truth(0).astype(int) - truth(5)).mean() > 2) is moves
        assert not path.exists()
        assert len(pictures) == 6
        assert 0.3 < abs(pictures[0].astype(int) - pictures[1]).mean() < 10  # noise, whether it moves or not
        assert abs(pictures[0].astype(int) - truth(0)).mean() < 12
    for index in range(0, 250, 10):  # the black outside of the photograph never comes into view
        assert truth(index).max(-1)[0].min() > 5


# --- on the command line


@pytest.fixture
def command(pipeline, monkeypatch, tmp_path):
    folder = tmp_path / "weights"
    pipeline.save_pretrained(folder)
    monkeypatch.setattr("faceprior.faces.load_detector", lambda *_: NoseDetector())
    quick = ("--prior", str(folder), "--device", "cpu", "--dtype", "float32", "--option", "steps=2")
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), *quick])


def test_clips_are_restored_from_the_command_line_and_explained(command, clip, tmp_path):
    result = command("restore", clip, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "1 face in 8 frames, 8 times restored" in result.output
    explained = CliRunner().invoke(app, ["explain", str(tmp_path / "out" / "clip.mp4")])
    assert json.loads(explained.output)["options"]["steps"] == 2


def test_a_bad_clip_fails_alone(command, clip, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    result = command("restore", bad, clip, "--output", tmp_path / "out")
    assert result.exit_code == 3
    assert "bad.mp4: is damaged, cut short or not a video" in result.output.replace("\n", " ")
    assert (tmp_path / "out" / "clip.mp4").exists()


def test_a_clip_is_never_written_over_by_its_result(command, clip):
    before = clip.read_bytes()
    assert command("restore", clip, "--output", clip.parent).exit_code == 0
    assert clip.read_bytes() == before
    assert (clip.parent / "clip_mp4.mp4").exists()


# --- starting from a given face


def test_a_restoration_starts_from_the_face_that_it_is_given_where_it_is_known(pipeline, rng):
    low = [torch.rand(3, 8, 8, generator=rng) - 0.5 for _ in range(2)]
    others = torch.rand(2, 3, 32, 32, generator=rng) - 0.5
    preset = QUICK.preset.with_options(start=0.3)

    def restored(initial):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        return pipeline.restore(low, generators, 2, preset, 3, initial=initial)

    free = restored(None)
    for found, expected in zip(restored(Initial(others, torch.zeros(2, 1, 1, 1))), free, strict=True):
        assert torch.equal(found.images, expected.images)
    first_known = restored(Initial(others, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)))
    assert torch.equal(first_known[1].images, free[1].images)
    for sample in range(2):
        assert not torch.equal(first_known[0].images[sample], free[0].images[sample])
