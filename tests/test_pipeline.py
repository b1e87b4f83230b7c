import json
import math
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import combinations

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from faceprior import FacePriorPipeline, load_prior
from faceprior.doubt import GAUSSIAN_FACTOR
from faceprior.errors import DeviceError, ImageError, OptionError, WeightsError
from faceprior.evaluation.metrics import lr_consistency
from faceprior.methods import DPIOptions, Preset, SamplingOptions
from faceprior.pipeline import face_prior
from faceprior.priors import Prior
from faceprior.priors.card import ModelCard

SIDE = 32
PRESET = Preset("dpi", SamplingOptions(steps=5), DPIOptions(tau=0.5, late_weight=1.5))
"""Few steps, three of them in stage 2: t = 800, 600, 400, 200, 0."""


def build(prior, corrector=None):
    pipeline = FacePriorPipeline(prior, corrector)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def plain(tiny):
    """The embedded prior's kind of network, no corrector."""
    return build(tiny.gaussian_prior())


@pytest.fixture(scope="module")
def corrected(tiny):
    return build(tiny.gaussian_prior(), tiny.corrector())


@pytest.fixture(scope="module")
def epsilon(tiny):
    """A `UNet2DModel` with a learned variance, and a corrector."""
    return build(tiny.epsilon_prior(), tiny.corrector())


@pytest.fixture(params=["plain", "corrected", "epsilon"])
def pipeline(request):
    return request.getfixturevalue(request.param)


def faces(count, side=8, seed=0):
    """(count, 3, side, side) in [0, 1], exact in eight bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator) / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def restore(pipeline, images=None, seed=0, **options):
    options = {"preset": PRESET, "output_type": "pt", "generator": generator(seed), **options}
    return pipeline(faces(1) if images is None else images, **options)


def same(first, second):
    return (
        torch.equal(first.images, second.images)
        and torch.equal(first.mean, second.mean)
        and (first.doubt is None if second.doubt is None else torch.equal(first.doubt, second.doubt))
        and first.lr_consistency == second.lr_consistency
        and first.scales == second.scales
    )


# --- what a result depends on ---


@pytest.mark.parametrize("preset", ["ddim", "ddpm"])
def test_a_batch_of_four_is_four_singles_bit_for_bit(pipeline, preset):
    preset = Preset("dpi", SamplingOptions(preset, 5), PRESET.options)
    images = faces(4)
    singles = [restore(pipeline, image, preset=preset) for image in images]
    for batch_size in (1, 3, 4, 8):
        together = restore(pipeline, images, preset=preset, batch_size=batch_size)
        for position, single in enumerate(singles):
            assert torch.equal(together.images[position], single.images[0])
            assert torch.equal(together.mean[position], single.mean[0])
            assert together.lr_consistency[position] == single.lr_consistency[0]


class Memory:
    """A device that holds so many images at once, and says that it is full when it has made some steps."""

    def __init__(self, pipeline, monkeypatch, room, after=0):
        monkeypatch.setattr(pipeline, "_fitting", {})
        self.tried, self.room, original = [], room, face_prior.sample_batches

        def sample_batches(batches, steps, **options):
            self.tried.append(len(batches))
            if len(batches) <= self.room:
                return original(batches, steps, **options)
            original(batches, steps[:after], **options)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        monkeypatch.setattr(face_prior, "sample_batches", sample_batches)


@pytest.mark.parametrize("after", [0, 3])
def test_the_batch_is_found_by_itself_and_halved_with_a_warning_where_the_memory_is_full(
    corrected, monkeypatch, after
):
    images = faces(5)
    options = {"num_samples": 2, "preset": Preset("dpi", SamplingOptions("ddpm", 5), PRESET.options)}
    monkeypatch.setattr(face_prior, "_IMAGES_A_CORE", 0)
    expected = restore(corrected, images, **options)
    memory = Memory(corrected, monkeypatch, 3, after)
    with pytest.warns(UserWarning, match="faces at once do not fit into the memory of cpu; going on with") as told:
        assert same(restore(corrected, images, **options), expected)
    assert memory.tried == [8, 4, 2, 2, 2, 2, 2]
    assert [str(warning.message)[:1] for warning in told] == ["8", "4"]
    restore(corrected, faces(2), num_samples=2)
    assert memory.tried[7:] == [2, 2]  # the next call knows it
    memory.room = 0
    with pytest.raises(DeviceError, match="one face does not fit into the memory of cpu; close other programs"):
        restore(corrected, batch_size=1)


def test_rows_say_whose_steps_they_are(corrected):
    seen = defaultdict(list)

    def on_step(step, x_prev, x0, rows):
        seen[rows].append(len(x0))
        return x_prev

    low = [torch.zeros(3, 4, 4)] * 3
    corrected.restore(low, [generator(n) for n in range(3)], 2, PRESET, 4, on_step)
    steps = corrected.evaluations(PRESET)
    assert seen == {range(4): [4] * steps, range(4, 6): [2] * steps}


@pytest.mark.parametrize("preset", ["default", "fast", "paper-ddim"])
def test_with_each_preset_a_batch_of_four_is_four_singles_and_seeds_reproduce(corrected, preset):
    images = faces(4)
    together = restore(corrected, images, preset=preset)
    for image, restored in zip(images, together.images, strict=True):
        assert torch.equal(restored, restore(corrected, image, preset=preset).images[0])
    assert same(restore(corrected, images, preset=preset, batch_size=2), together)
    assert not torch.equal(restore(corrected, images, seed=1, preset=preset).images, together.images)


def test_the_number_of_threads_changes_no_byte_and_networks_see_each_image_alone_with_one(corrected):
    seen, found = set(), []

    def watch(_network, inputs):
        seen.add((len(inputs[0]), torch.get_num_threads()))

    hooks = [network.register_forward_pre_hook(watch) for network in (corrected.prior.network, corrected.crt.network)]
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(restore(corrected, faces(3), num_samples=2))
    finally:
        torch.set_num_threads(1)
        for hook in hooks:
            hook.remove()
    assert seen == {(1, 1)}
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_networks_see_whole_batches_only_where_it_is_asked_for(corrected):
    low = list(faces(3) * 2 - 1)
    for whole in (False, True):
        sizes = []
        hook = corrected.prior.network.register_forward_pre_hook(
            lambda _network, inputs, sizes=sizes: sizes.append(len(inputs[0]))
        )
        corrected.restore(low, [generator(n) for n in range(3)], 1, PRESET, 3, whole_batches=whole)
        hook.remove()
        assert set(sizes) == ({3} if whole else {1})


def test_faces_of_different_sizes_share_a_batch(corrected):
    images = [faces(1, side)[0] for side in (4, 6, 8)]
    together = restore(corrected, images)
    for position, image in enumerate(images):
        assert torch.equal(together.images[position], restore(corrected, image).images[0])
    assert together.scales == [8, 32 / 6, 4]


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(pipeline):
    first = restore(pipeline, seed=3)
    assert same(restore(pipeline, seed=3), first)
    assert not torch.equal(restore(pipeline, seed=4).images, first.images)


def test_a_result_does_not_depend_on_the_order_of_the_inputs(corrected):
    images = faces(3)
    found = restore(corrected, images, num_samples=2, batch_size=4)
    turned = restore(corrected, images.flip(0), num_samples=2, batch_size=4)
    assert torch.equal(found.images.view(3, 2, 3, SIDE, SIDE).flip(0), turned.images.view(3, 2, 3, SIDE, SIDE))
    assert torch.equal(found.doubt.flip(0), turned.doubt)


def test_sample_j_does_not_depend_on_the_number_of_samples(corrected):
    images = faces(2)
    three = restore(corrected, images, num_samples=3).images.view(2, 3, 3, SIDE, SIDE)
    for count in (1, 2):
        fewer = restore(corrected, images, num_samples=count).images.view(2, count, 3, SIDE, SIDE)
        assert torch.equal(fewer, three[:, :count])
    assert not torch.equal(three[:, 0], three[:, 1])


def test_one_generator_a_face_is_that_face_alone_with_that_generator(corrected):
    images = faces(2)
    found = restore(corrected, images, generator=[generator(1), generator(2)])
    for position, seed in enumerate((1, 2)):
        assert torch.equal(found.images[position], restore(corrected, images[position], seed).images[0])


def test_a_generator_is_used_up_so_that_the_next_call_differs(plain):
    own = generator(1)
    first, second = (restore(plain, generator=own) for _ in range(2))
    assert not torch.equal(first.images, second.images)


def test_a_seed_is_a_generator_of_that_seed(corrected):
    images = faces(2)
    by_generator = restore(corrected, images, generator=[generator(1), generator(2)])
    assert same(restore(corrected, images, generator=[1, 2]), by_generator)
    assert same(restore(corrected, images, generator=(np.int64(1), torch.tensor(2))), by_generator)
    assert same(restore(corrected, images, generator=0), restore(corrected, images, generator=generator(0)))


def test_torch_seeds_a_call_without_a_generator(plain):
    torch.manual_seed(5)
    first = restore(plain, generator=None)
    torch.manual_seed(5)
    assert same(restore(plain, generator=None), first)
    torch.manual_seed(6)
    assert not torch.equal(restore(plain, generator=None).images, first.images)


def test_without_a_generator_every_call_draws_fresh_noise(plain):
    assert not torch.equal(restore(plain, generator=None).images, restore(plain, generator=None).images)


CHANGES = [
    {"steps": 6},
    {"tau": 0.3},
    {"stride": 4},
    {"edge_exponent": 0.3},
    {"late_weight": 0.5},
    {"eta": 0.5},
    {"start": 0.7},
    {"end": 0.1},
    {"shift": 0.3},
    {"solver": "ddpm"},
    {"placement": "resized"},
    {"smooth": True},
    {"rederived": 0.5},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
@pytest.mark.parametrize("name", ["plain", "corrected"])
def test_every_option_changes_the_result(request, name, change):
    pipeline = request.getfixturevalue(name)
    options = dict(change)
    if "steps" in options:
        options["num_inference_steps"] = options.pop("steps")
    found = restore(pipeline, **options)
    assert not torch.equal(found.images, restore(pipeline).images)
    preset = PRESET.with_options(**change)  # by name and in a preset it means the same
    assert torch.equal(found.images, restore(pipeline, preset=preset).images)


def test_no_option_is_left_out_of_the_test_above():
    tested = {name for change in CHANGES for name in change}
    tested |= {"crt", "detail", "detail_above", "deviation", "texture"}  # they need a corrector
    assert tested == {*asdict(PRESET.sampling), *asdict(PRESET.options)}


def test_the_corrector_acts_when_the_option_says(plain, corrected):
    images = {crt: restore(corrected, crt=crt).images for crt in ("never", "first", "after", "always")}
    assert torch.equal(images["never"], restore(plain).images)
    assert all(not torch.equal(images[one], images[other]) for one, other in combinations(images, 2))
    assert torch.equal(restore(plain, crt="first").images, restore(plain, crt="always").images)
    followed = [restore(corrected, crt="always", detail=detail).images for detail in (0.0, 0.5, 1.0)]
    followed += [restore(corrected, crt="always", detail_above=cycles).images for cycles in (2, 4)]
    followed.append(restore(corrected, crt="always", deviation=0.5).images)
    assert all(not torch.equal(one, other) for one, other in combinations(followed, 2))
    assert torch.equal(followed[0], images["first"])


def test_scale_preset_and_corrector_change_the_result(plain, corrected):
    base = restore(plain)
    assert not torch.equal(restore(plain, scale=8).images, base.images)
    assert torch.equal(restore(plain, scale=4).images, base.images)  # what "auto" finds
    assert not torch.equal(restore(plain, preset="default", num_inference_steps=5).images, base.images)
    assert not torch.equal(restore(corrected).images, base.images)


def test_numbers_of_numpy_and_torch_are_numbers(plain):
    base = restore(plain, scale=8, num_inference_steps=4, num_samples=2, batch_size=1, tau=0.5, stride=2)
    found = restore(
        plain,
        scale=np.float32(8),
        num_inference_steps=np.int64(4),
        num_samples=np.int32(2),
        batch_size=torch.tensor(1),
        tau=np.float64(0.5),
        stride=torch.tensor(2),
    )
    assert same(found, base)


def test_an_option_of_none_is_left_to_the_preset(plain):
    assert same(restore(plain, tau=None, num_inference_steps=None, solver=None), restore(plain))


# --- inputs and outputs ---


@pytest.mark.parametrize("num_samples", [1, 2])
def test_the_output_types_agree(corrected, num_samples):
    images = faces(2)
    pt, array, pil = (
        restore(corrected, images, num_samples=num_samples, output_type=kind) for kind in ("pt", "np", "pil")
    )
    for name, count in (("images", 2 * num_samples), ("mean", 2)):
        tensors, arrays, pictures = (getattr(output, name) for output in (pt, array, pil))
        assert tensors.shape == (count, 3, SIDE, SIDE)
        assert tensors.dtype == torch.float32
        assert arrays.dtype == np.float32
        assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
        assert len(pictures) == count
        for picture, values in zip(pictures, arrays, strict=True):
            assert picture.mode == "RGB"
            assert picture.size == (SIDE, SIDE)
            assert np.abs(np.asarray(picture) - 255 * values).max() <= 0.501
    for output in (array, pil):
        assert np.array_equal(output.doubt, pt.doubt.numpy())
        assert output.lr_consistency == pt.lr_consistency
    assert pt.doubt.shape == (2, SIDE, SIDE)


def test_the_doubt_follows_the_calibration_of_the_corrector_and_without_one_the_samples(corrected, plain):
    images = faces(1)
    calibrated = replace(corrected.corrector_card, calibration={"x4": [(0.1, 2 * GAUSSIAN_FACTOR)]})
    other = FacePriorPipeline(corrected.prior, replace(corrected.crt, card=calibrated))
    base, doubled = restore(corrected, images), restore(other, images)
    torch.testing.assert_close(doubled.doubt, (2 * base.doubt).clamp(max=1))
    assert restore(plain, images).doubt is None
    assert restore(plain, images, num_samples=3).doubt.min() > 0


def test_mean_doubt_and_consistency_are_what_their_docstring_says(corrected):
    images = faces(2)
    found = restore(corrected, images, num_samples=3)
    samples = found.images.view(2, 3, 3, SIDE, SIDE).double()
    torch.testing.assert_close(found.mean.double(), samples.mean(1), atol=1e-6, rtol=0)
    for position, face in enumerate(images):
        (known,) = corrected.expected([face * 2 - 1])
        beyond = (samples[position, 0] * 2 - 1 - known.x0[0]).square().mean(0)
        width = GAUSSIAN_FACTOR * (known.log_error[0, 0].exp() + beyond).sqrt() / 2
        torch.testing.assert_close(found.doubt[position].double(), width.clamp(max=1), atol=1e-5, rtol=1e-5)
    low = images.repeat_interleave(3, dim=0) * 2 - 1
    expected = lr_consistency(found.images * 2 - 1, low)
    assert found.lr_consistency == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_input_types_agree(plain, tmp_path):
    tensor = faces(1)[0]
    pixels = (tensor * 255).round().to(torch.uint8)
    array = pixels.permute(1, 2, 0).numpy()
    base = restore(plain, tensor)
    inputs = {
        "batch of tensors": tensor[None],
        "list of tensors": [tensor],
        "double tensor": tensor.double(),
        "uint8 tensor": pixels,
        "uint8 array": array,
        "batch of arrays": array[None],
        "float array": array / 255,
        "float32 array": (array / 255).astype(np.float32),
        "strided array": np.flip(np.flip(array, 0).copy(), 0),
        "picture": Image.fromarray(array),
        "list of pictures": [Image.fromarray(array)],
        "transparent picture": Image.fromarray(array).convert("RGBA"),
        "path": tmp_path / "face.png",
        "path as text": str(tmp_path / "face.png"),
        "list of paths": [tmp_path / "face.png"],
    }
    Image.fromarray(array).save(tmp_path / "face.png")
    for name, image in inputs.items():
        found = restore(plain, image)
        torch.testing.assert_close(found.images, base.images, atol=1e-5, rtol=0, msg=name)


def test_grey_inputs_agree(plain):
    tensor = faces(1)[0, 0]
    pixels = (tensor * 255).round().to(torch.uint8)
    array = pixels.numpy()
    base = restore(plain, tensor.expand(3, -1, -1))
    inputs = {
        "tensor": tensor,
        "tensor of one channel": tensor[None],
        "batch of tensors": tensor[None, None],
        "uint8 array": array,
        "array of one channel": array[..., None],
        "batch of arrays": array[None, ..., None],
        "list of float arrays": [array / 255],
        "picture": Image.fromarray(array),
    }
    for name, image in inputs.items():
        found = restore(plain, image)
        torch.testing.assert_close(found.images, base.images, atol=1e-5, rtol=0, msg=name)


def test_of_an_oblong_face_the_central_square_is_taken(plain):
    face = faces(1, 8)[0]
    base = restore(plain, face)
    wide = torch.cat([torch.zeros(3, 8, 2), face, torch.ones(3, 8, 2)], dim=2)
    high = torch.cat([torch.zeros(3, 3, 8), face, torch.ones(3, 3, 8)], dim=1)
    for image in (wide, high):
        assert same(restore(plain, image), base)
    picture = Image.fromarray((wide * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    torch.testing.assert_close(restore(plain, picture).images, base.images, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_size_scale_and_stride_give_a_whole_picture(plain, corrected, data):
    pipeline = data.draw(st.sampled_from([plain, corrected]))
    height, width = data.draw(st.integers(4, 70), label="height"), data.draw(st.integers(4, 70), label="width")
    scale = data.draw(st.one_of(st.just("auto"), st.floats(2, 8)), label="scale")
    stride = data.draw(st.sampled_from([2, 4, 8] if pipeline is corrected else [1, 2, 4, 8]), label="stride")
    image = torch.rand(3, height, width, generator=generator(height * width))
    found = restore(pipeline, image, scale=scale, stride=stride, num_inference_steps=2)
    assert found.images.shape == (1, 3, SIDE, SIDE)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert math.isfinite(found.lr_consistency[0])
    side = round(SIDE / scale) if scale != "auto" else min(height, width, SIDE)
    assert found.scales == [SIDE / side]


def test_a_tuple_instead_of_a_dictionary(plain):
    found = restore(plain, return_dict=False)
    base = restore(plain)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], base.images)
    assert len(found) == 5


# --- the callback ---


def test_the_callback_sees_every_step(corrected):
    calls = []

    def callback(pipe, index, t, tensors):
        assert pipe is corrected
        calls.append((index, t, {name: tensor.clone() for name, tensor in tensors.items()}))
        return tensors

    found = restore(
        corrected,
        faces(3),
        batch_size=2,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=("sample", "x0"),
    )
    assert [call[:2] for call in calls] == 2 * list(enumerate([800, 600, 400, 200, 0]))
    for position, (index, _, tensors) in enumerate(calls):
        size = 2 if position < 5 else 1
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            "sample": (size, 3, SIDE, SIDE),
            "x0": (size, 3, SIDE, SIDE),
        }
        assert not torch.equal(tensors["x0"], tensors["sample"]) or index == 4
    last = torch.cat([calls[4][2]["sample"], calls[9][2]["sample"]])
    assert torch.equal((last.clamp(-1, 1) + 1) / 2, found.images)
    assert same(found, restore(corrected, faces(3)))  # watching changes nothing


def test_the_callback_gets_the_sample_alone_unless_it_asks(plain):
    names = []
    restore(plain, callback_on_step_end=lambda pipe, index, t, tensors: names.append(set(tensors)))
    assert names == 5 * [{"sample"}]


def test_the_callback_can_replace_the_sample(plain):
    def overwrite(pipe, index, t, tensors):
        return {"sample": torch.zeros_like(tensors["sample"])} if index == 4 else {}

    assert torch.equal(restore(plain, callback_on_step_end=overwrite).images, torch.full((1, 3, SIDE, SIDE), 0.5))

    def nudge(pipe, index, t, tensors):
        return {"sample": tensors["sample"] + 0.1} if index == 1 else None

    assert not torch.equal(restore(plain, callback_on_step_end=nudge).images, restore(plain).images)


# --- errors ---


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sharpness": 2}, "sharpness"),
        ({"steps": 10}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "steps"),
        ({"num_inference_steps": 1001}, "steps"),
        ({"num_inference_steps": 600, "start": 0.5}, "500"),
        ({"start": 0.0}, "start"),
        ({"eta": 2.0}, "eta"),
        ({"eta": 0.5, "solver": "ddpm"}, "eta"),
        ({"solver": "euler"}, "euler"),
        ({"tau": 1.5}, "tau"),
        ({"tau": -0.1}, "tau"),
        ({"stride": 3}, "stride"),
        ({"stride": 1}, "corrector"),
        ({"placement": "left"}, "placement"),
        ({"preset": "paper"}, "paper"),
        ({"scale": 1}, "scale"),
        ({"scale": 33}, "scale"),
        ({"scale": 16}, "scale 16 leaves 2 pixels"),
        ({"scale": math.nan}, "scale"),
        ({"scale": "4"}, "scale"),
        ({"num_samples": 0}, "samples"),
        ({"batch_size": 0}, "batch size"),
        ({"num_samples": 1.5}, "samples"),
        ({"num_inference_steps": 2.5}, "steps"),
        ({"guidance_scale": 7.5}, "guidance_scale"),
        ({"generator": -1}, "generator is -1"),
        ({"generator": [2**64]}, "generator is"),
        ({"generator": "0"}, "generator is '0'"),
        ({"output_type": "latent"}, "latent"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "latents"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_refused_by_its_name(corrected, options, word):
    with pytest.raises(OptionError, match=word) as caught:
        restore(corrected, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        pytest.param(torch.full((3, 8, 8), math.nan), "values", id="NaN"),
        pytest.param(torch.full((3, 8, 8), math.inf), "values", id="infinity"),
        pytest.param(torch.full((3, 8, 8), -0.5), r"\[0, 1\]", id="signed values"),
        pytest.param(np.full((8, 8, 3), 128, dtype=np.int64), r"\[0, 1\]", id="integers that are not uint8"),
        pytest.param(torch.zeros(2, 8, 8), r"\(2, 8, 8\)", id="two channels"),
        pytest.param(np.zeros((3, 8, 8)), r"\(3, 8, 8\)", id="array with channels first"),
        pytest.param(np.zeros(8), "not understood", id="a row"),
        pytest.param(torch.zeros(3, 3, 8), "too small", id="three pixels"),
        pytest.param(Image.new("RGB", (8, 2)), "too small", id="small picture"),
        pytest.param("no-such-face.png", r"no-such-face\.png", id="a path without a file"),
        pytest.param(8, "int", id="a number"),
        pytest.param([], "no image", id="nothing"),
        pytest.param([None], "NoneType", id="None"),
        pytest.param(np.zeros((0, 5, 3)), "small", id="empty array"),
    ],
)
def test_what_is_not_a_face_is_refused(plain, image, word):
    with pytest.raises(ImageError, match=word):
        restore(plain, image)


# --- saving and loading ---


@pytest.mark.parametrize("name", ["plain", "corrected", "epsilon"])
def test_a_saved_pipeline_is_loaded_as_it_was(request, tmp_path, name):
    pipeline = request.getfixturevalue(name)
    pipeline.save_pretrained(tmp_path)
    loaded = FacePriorPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(restore(loaded).images, restore(pipeline).images, atol=1e-4, rtol=0)
    loaded.save_pretrained(tmp_path / "again")
    again = FacePriorPipeline.from_pretrained(tmp_path / "again")
    again.set_progress_bar_config(disable=True)
    assert same(restore(again), restore(loaded))
    assert (loaded.crt is None) == (pipeline.crt is None)
    assert loaded.prior.card.name == "tiny"
    assert len(loaded.prior.card.sha256) == 64
    if pipeline.crt is not None:
        assert loaded.corrector_card.name == "tiny-corrector"
        without = FacePriorPipeline.from_pretrained(tmp_path, corrector="none")
        assert without.crt is None
        assert FacePriorPipeline.from_pretrained(tmp_path, corrector=None).crt is None
        assert FacePriorPipeline.from_pretrained(tmp_path, corrector=tmp_path / "corrector").crt is not None


@pytest.mark.parametrize("name", ["plain", "corrected", "epsilon"])
def test_a_saved_pipeline_restores_the_same_bytes(request, tmp_path, name):
    pipeline = request.getfixturevalue(name)
    pipeline.save_pretrained(tmp_path)
    loaded = FacePriorPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert same(restore(loaded), restore(pipeline))


def test_a_pipeline_as_built_restores_the_same_bytes_when_saved(tiny, tmp_path):
    prior = tiny.gaussian_prior()
    built = FacePriorPipeline(prior)
    built.set_progress_bar_config(disable=True)
    first = restore(built)
    built.save_pretrained(tmp_path)
    assert same(restore(FacePriorPipeline.from_pretrained(tmp_path)), first)


def test_a_corrector_that_does_not_fit_the_prior_is_refused_when_loading(tiny, plain, tmp_path):
    plain.save_pretrained(tmp_path / "prior")
    build(tiny.gaussian_prior(20), tiny.corrector(20)).save_pretrained(tmp_path / "other")
    with pytest.raises(OptionError, match="noise schedule"):
        FacePriorPipeline.from_pretrained(tmp_path / "prior", corrector=tmp_path / "other" / "corrector")


def test_half_precision_stays_close_to_single(tmp_path, plain):
    plain.save_pretrained(tmp_path)
    half = FacePriorPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.prior.network.unet.conv_in.weight.dtype == torch.bfloat16
    found, base = restore(half).images, restore(plain).images
    assert found.dtype == torch.float32
    assert not torch.equal(found, base)
    assert (found - base).abs().mean() < 0.02


@pytest.fixture
def diffusers_folder(tiny, tmp_path):
    DDPMPipeline(tiny.epsilon_network(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def as_flat_legacy(folder, flat):
    """The layout of google/ddpm-ema-celebahq-256: all at the root, pickled, attention under its old names."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for key, tensor in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        name = key
        for new, legacy in old.items():
            name = name.replace(new, legacy)
        state[name] = tensor
    assert sum("proj_attn" in name for name in state) > 0
    flat.mkdir()
    torch.save(state, flat / "diffusion_pytorch_model.bin")
    (flat / "config.json").write_text((folder / "unet" / "config.json").read_text())
    scheduler = (folder / "scheduler" / "scheduler_config.json").read_text()
    (flat / "scheduler_config.json").write_text(scheduler)
    return flat


@torch.no_grad()
@pytest.mark.parametrize("layout", ["pipeline", "flat"])
def test_a_plain_diffusers_folder_is_a_prior(tiny, tmp_path, diffusers_folder, layout):
    folder = diffusers_folder
    if layout == "flat":
        folder = as_flat_legacy(diffusers_folder, tmp_path / "flat")
    prior = load_prior(folder)
    assert isinstance(prior, Prior)
    assert (prior.resolution, prior.card.prediction_type, len(prior.schedule)) == (SIDE, "epsilon", 1000)
    assert (prior.card.name, prior.card.source) == (folder.name, str(folder))
    x_t = torch.randn(1, 3, SIDE, SIDE, generator=generator())
    expected = tiny.epsilon_network()(x_t, torch.tensor([300])).sample
    estimate = prior(x_t, torch.tensor([300]))
    torch.testing.assert_close(torch.cat([estimate.eps, estimate.variance_range], 1), expected)

    loaded = FacePriorPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    base = restore(build(tiny.epsilon_prior())).images
    torch.testing.assert_close(restore(loaded).images, base, atol=1e-4, rtol=0)


def test_a_hub_id_is_downloaded(monkeypatch, diffusers_folder):
    asked = []

    def snapshot_download(repo_id, **options):
        asked.append((repo_id, options["allow_patterns"]))
        return str(diffusers_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    prior = load_prior("someone/faces")
    assert prior.card.source == "someone/faces"
    assert FacePriorPipeline.from_pretrained("someone/faces").resolution == SIDE
    assert {repo_id for repo_id, _ in asked} == {"someone/faces"}
    assert set(asked[0][1]) == {"*.json", "*.safetensors", "*.bin"}  # nothing that could run


def test_the_corrector_that_was_saved_with_a_prior_comes_with_its_hub_id(monkeypatch, tmp_path, corrected):
    corrected.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id, **options: str(tmp_path))
    assert FacePriorPipeline.from_pretrained("someone/faces").crt is not None


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"prior someone/faces.*hub cannot be reached.*connection"):
        load_prior("someone/faces")
    with pytest.raises(WeightsError, match="neither a name"):
        load_prior(tmp_path / "not" / "there")


# --- weights that are not what they should be ---


@pytest.fixture
def folder(plain, tmp_path):
    plain.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def alter_weights(folder, change):
    """Change the tensors and let the card vouch for them."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    change(state)
    save_file(state, weights)
    edit(folder / "card.json", sha256="")


def refused(folder, *words):
    for load in (load_prior, FacePriorPipeline.from_pretrained):
        with pytest.raises(WeightsError) as caught:
            load(folder)
        message = str(caught.value)
        assert "\n" not in message
        for word in (str(folder), *words):
            assert word in message


def test_a_card_with_another_sha256_is_refused(folder):
    edit(folder / "card.json", sha256="0" * 64)
    refused(folder, "diffusion_pytorch_model.safetensors", "sha256")


def test_a_missing_key_is_refused_by_its_name(folder):
    alter_weights(folder, lambda state: state.pop("unet.up.1.0.first.weight"))
    refused(folder, "missing", "unet.up.1.0.first.weight")


def test_an_unexpected_key_is_refused_by_its_name(folder):
    alter_weights(folder, lambda state: state.update(stowaway=torch.zeros(2)))
    refused(folder, "unexpected", "stowaway")


def test_a_misshapen_tensor_is_refused_by_its_name(folder):
    alter_weights(folder, lambda state: state.update({"gaussian.component_std": torch.zeros(2, 9)}))
    refused(folder, "misshapen", "gaussian.component_std")


def test_damaged_weights_are_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    edit(folder / "card.json", sha256="")
    refused(folder, "cannot be loaded")


def test_a_pickle_that_runs_code_is_refused(diffusers_folder, tmp_path):
    flat = as_flat_legacy(diffusers_folder, tmp_path / "flat")
    torch.save({"conv_in.weight": Explosive(tmp_path / "ran")}, flat / "diffusion_pytorch_model.bin")
    refused(flat)
    assert not (tmp_path / "ran").exists()


class Explosive:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


@pytest.mark.parametrize("name", ["AutoencoderKL", "UNet2DConditionModel", "ConditionCorrector", None])
def test_a_network_that_is_no_prior_is_refused(folder, name):
    edit(folder / "unet" / "config.json", _class_name=name)
    refused(folder, str(name), "not a prior")


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "card.json"])
def test_a_damaged_json_file_is_refused(folder, file, content):
    (folder / file).write_text(content)
    refused(folder, file)


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("scheduler/scheduler_config.json", "scheduler_config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("unet/config.json", ""),
    ],
)
def test_a_missing_file_is_named(folder, file, word):
    (folder / file).unlink()
    refused(folder, word)


def test_an_unknown_noise_schedule_or_prediction_is_refused(folder):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit(scheduler, prediction_type="flow")
    with pytest.raises(WeightsError, match="flow"):
        load_prior(folder)
    edit(scheduler, beta_schedule="sigmoid")
    with pytest.raises(WeightsError, match="sigmoid"):
        load_prior(folder)


def test_an_unknown_entry_of_a_card_is_refused(folder):
    edit(folder / "card.json", colour="green")
    refused(folder, "card.json", "colour")


def test_a_card_need_not_repeat_the_noise_schedule(tiny, tmp_path):
    build(tiny.gaussian_prior(40)).save_pretrained(tmp_path)
    edit(tmp_path / "card.json", schedule={})
    expected = load_prior(tmp_path).schedule
    assert len(expected) == 40
    assert FacePriorPipeline.from_pretrained(tmp_path).prior.schedule.equals(expected)


def test_a_card_of_another_resolution_is_refused(folder):
    edit(folder / "card.json", resolution=64)
    refused(folder, "64")


def test_a_card_without_a_hash_gets_one(folder):
    expected = ModelCard.read(folder).sha256
    edit(folder / "card.json", sha256="")
    assert load_prior(folder).card.sha256 == expected


# --- a golden slice ---


def test_a_small_run_gives_the_values_that_it_always_gave(corrected):
    face = torch.linspace(0, 1, 8).expand(3, 8, 8) * torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1)
    found = restore(corrected, face, start=0.5, num_inference_steps=6, output_type="np").images
    expected = [0.43265, 0.60269, 0.53764, 0.59701, 0.67511, 0.72713, 0.63152, 0.64888, 0.67331]
    assert found[0, -3:, -3:, -1].flatten().tolist() == pytest.approx(expected, abs=1e-4)
