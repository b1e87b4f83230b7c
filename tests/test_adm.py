import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adm_reference import ADMUNet, randomise
from faceprior.errors import FacePriorError, OptionError, WeightsError
from faceprior.priors.adm import ADMConfig, build_unet, load_adm_checkpoint
from faceprior.priors.card import file_sha256
from faceprior.priors.noise_schedule import NoiseSchedule
from faceprior.priors.store import load_prior, save_prior
from faceprior.settings import load_settings

TINY = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_head_channels": 32,
}
REFERENCE_NAMES = {
    "image_size": "image_size",
    "num_channels": "channels",
    "num_res_blocks": "blocks",
    "num_head_channels": "head_channels",
    "use_new_attention_order": "new_order",
    "use_scale_shift_norm": "scale_shift",
    "resblock_updown": "resblock_updown",
    "learn_sigma": "learn_sigma",
}


def reference(flags, seed=0):
    options = {REFERENCE_NAMES[name]: value for name, value in flags.items() if name in REFERENCE_NAMES}
    for name, own in (("channel_mult", "mult"), ("attention_resolutions", "attention")):
        options[own] = tuple(int(part) for part in flags[name].split(","))
    if flags["num_head_channels"] == -1:
        options["heads"] = flags["num_heads"]
    return randomise(ADMUNet(**options), seed)


def write_flags(folder, flags):
    path = folder / "flags.json"
    path.write_text(json.dumps(flags))
    return path


def inputs(side=16, steps=(3, 977)):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(len(steps), 3, side, side, generator=generator), torch.tensor(steps)


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def predict(prior, x_t, t):
    estimate = prior(x_t, t)
    parts = [estimate.eps] if estimate.variance_range is None else [estimate.eps, estimate.variance_range]
    return torch.cat(parts, dim=1)


@pytest.fixture
def tiny(tmp_path):
    network = reference(TINY)
    path = tmp_path / "tiny.pt"
    torch.save(network.state_dict(), path)
    return network, path, write_flags(tmp_path, TINY)


def save_altered(tiny, alter):
    network, path, flags = tiny
    torch.save(alter(dict(network.state_dict())), path)
    return path, flags


def message_of(path, flags, kind=WeightsError):
    with pytest.raises(kind) as caught:
        load_adm_checkpoint(path, flags)
    message = str(caught.value)
    assert "\n" not in message
    return message


FFHQ_LIKE = {
    "image_size": 32,
    "channel_mult": "1,1,2",
    "attention_resolutions": "16",
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="two levels, attention on the lowest"),
        pytest.param(FFHQ_LIKE, id="three levels, attention on the middle one"),
        pytest.param({**FFHQ_LIKE, "attention_resolutions": "16,8"}, id="two attention resolutions"),
        pytest.param({**FFHQ_LIKE, "attention_resolutions": "32,8"}, id="attention at the full resolution"),
        pytest.param({**FFHQ_LIKE, "attention_resolutions": "4"}, id="attention in the middle block only"),
        pytest.param({"num_res_blocks": 2}, id="two residual blocks"),
        pytest.param({**FFHQ_LIKE, "resblock_updown": False}, id="convolutions resample"),
        pytest.param({"resblock_updown": False, "attention_resolutions": "16"}, id="convolutions after attention"),
        pytest.param({"use_new_attention_order": True, "num_head_channels": 16}, id="new attention order"),
        pytest.param({"learn_sigma": False}, id="no variance"),
        pytest.param({"num_head_channels": 8}, id="many heads"),
        pytest.param({"num_head_channels": 64}, id="one head"),
        pytest.param({"num_head_channels": -1, "num_heads": 4}, id="a fixed number of heads"),
        pytest.param({"use_scale_shift_norm": False}, id="the step only shifts"),
        pytest.param({"channel_mult": "1,3", "num_head_channels": 16}, id="an odd multiple"),
    ],
)
@torch.no_grad()
def test_the_converted_network_computes_what_the_checkpoint_did(tmp_path, changes):
    flags = {**TINY, **changes}
    network = reference(flags)
    torch.save(network.state_dict(), tmp_path / "adm.pt")
    prior = load_adm_checkpoint(tmp_path / "adm.pt", write_flags(tmp_path, flags))
    x_t, t = inputs(flags["image_size"])
    found, expected = predict(prior, x_t, t), network(x_t, t)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-5


@torch.no_grad()
def test_the_attention_order_is_a_choice_that_changes_the_result(tmp_path, tiny):
    network, path, _ = tiny
    flags = write_flags(tmp_path, {**TINY, "use_new_attention_order": True})
    x_t, t = inputs()
    assert relative_error(predict(load_adm_checkpoint(path, flags), x_t, t), network(x_t, t)) > 1e-3


def test_the_default_flags_are_the_ffhq_network_of_93_56_million_parameters():
    with torch.device("meta"):
        converted, expected = build_unet(ADMConfig()), ADMUNet()
    count = sum(parameter.numel() for parameter in expected.parameters())
    assert sum(parameter.numel() for parameter in converted.parameters()) == count
    assert round(count / 1e6, 2) == 93.56


def test_the_card_says_what_the_checkpoint_is(tiny):
    _, path, flags = tiny
    prior = load_adm_checkpoint(path, flags)
    card = prior.card
    assert (card.kind, card.name, card.resolution) == ("prior", "tiny", 16)
    assert (card.source, card.licence, card.prediction_type) == ("tiny.pt", "unknown", "epsilon")
    assert card.sha256 == file_sha256(path)
    assert card.schedule["variance_type"] == "learned_range"
    assert prior.schedule.equals(NoiseSchedule.linear())
    assert not prior.network.training
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())


def test_a_network_without_a_learned_variance_does_not_claim_one(tmp_path):
    flags = {**TINY, "learn_sigma": False}
    torch.save(reference(flags).state_dict(), tmp_path / "adm.pt")
    prior = load_adm_checkpoint(tmp_path / "adm.pt", write_flags(tmp_path, flags))
    assert "variance_type" not in prior.card.schedule


def test_the_cosine_schedule_is_the_one_of_improved_diffusion(tmp_path, tiny):
    flags = write_flags(tmp_path, {**TINY, "noise_schedule": "cosine", "diffusion_steps": 100})
    found = load_adm_checkpoint(tiny[1], flags).schedule.alphas_cumprod
    level = torch.arange(101, dtype=torch.float64) / 100
    squares = torch.cos((level + 0.008) / 1.008 * torch.pi / 2).square()
    expected = (squares / squares[0])[1:]
    assert len(found) == 100
    assert torch.allclose(found[:-1], expected[:-1])  # the last β is capped at 0.999


def test_a_shorter_linear_schedule_adds_the_same_noise_in_all(tmp_path, tiny):
    flags = write_flags(tmp_path, {**TINY, "diffusion_steps": 250})
    found = load_adm_checkpoint(tiny[1], flags).schedule
    assert found.equals(NoiseSchedule.linear(250, 4e-4, 0.08))


@torch.no_grad()
@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: {f"module.{key}": value for key, value in state.items()}, id="DataParallel"),
        pytest.param(lambda state: {"state_dict": state, "step": 7}, id="wrapped"),
        pytest.param(lambda state: {"ema": {f"module.{k}": v for k, v in state.items()}}, id="wrapped DataParallel"),
    ],
)
def test_a_prefix_or_a_wrapper_is_taken_off(tiny, wrap):
    network = tiny[0]
    x_t, t = inputs()
    assert relative_error(predict(load_adm_checkpoint(*save_altered(tiny, wrap)), x_t, t), network(x_t, t)) < 1e-5


@torch.no_grad()
def test_a_half_precision_checkpoint_is_loaded_in_float32(tiny):
    network, path, flags = tiny
    network.half()
    torch.save(network.state_dict(), path)
    prior = load_adm_checkpoint(path, flags)
    assert {parameter.dtype for parameter in prior.network.parameters()} == {torch.float32}
    x_t, t = inputs()
    assert relative_error(predict(prior, x_t, t), network.float()(x_t, t)) < 1e-5


@torch.no_grad()
def test_safetensors_hold_the_same_prior(tiny, tmp_path):
    network, _, flags = tiny
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    x_t, t = inputs()
    found = predict(load_adm_checkpoint(tmp_path / "tiny.safetensors", flags), x_t, t)
    assert relative_error(found, network(x_t, t)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("head_channels", [16, 64])
def test_a_converted_prior_survives_saving_and_loading(tmp_path, head_channels):
    flags = {**TINY, "num_head_channels": head_channels}
    torch.save(reference(flags).state_dict(), tmp_path / "adm.pt")
    prior = load_prior(tmp_path / "adm.pt", write_flags(tmp_path, flags))
    save_prior(prior, tmp_path / "saved", half=False)
    again = load_prior(tmp_path / "saved")
    x_t, t = inputs()
    assert torch.equal(predict(again, x_t, t), predict(prior, x_t, t))
    assert again.schedule.equals(prior.schedule)
    assert again.card.source == "adm.pt"


def test_a_missing_key_is_an_error_that_names_it(tiny):
    key = "middle_block.1.qkv.weight"
    message = message_of(*save_altered(tiny, lambda state: {k: v for k, v in state.items() if k != key}))
    assert f"missing keys: {key};" in message
    assert str(tiny[1]) in message


def test_an_unexpected_key_is_an_error_that_names_it(tiny):
    message = message_of(*save_altered(tiny, lambda state: {**state, "label_emb.weight": torch.zeros(2, 2)}))
    assert "unexpected keys: label_emb.weight;" in message
    assert str(tiny[1]) in message


def test_a_misshapen_key_is_an_error_that_names_it_and_both_shapes(tiny):
    message = message_of(*save_altered(tiny, lambda state: {**state, "out.2.weight": torch.zeros(3, 32, 3, 3)}))
    assert "misshapen keys: out.2.weight (3, 32, 3, 3) instead of (6, 32, 3, 3);" in message


def test_flags_of_another_network_are_an_error_that_counts_the_keys_left_out(tiny):
    message = message_of(tiny[1], None)
    assert "missing keys: " in message
    assert "misshapen keys: input_blocks.0.0.weight (32, 3, 3, 3) instead of (128, 3, 3, 3), " in message
    assert " more" in message


def test_another_networks_checkpoint_is_an_error(tiny):
    message = message_of(*save_altered(tiny, lambda _: {"conv_in.weight": torch.zeros(1)}))
    assert "is not an ADM (guided-diffusion) checkpoint" in message
    assert "conv_in.weight" in message


def test_several_networks_in_one_file_are_an_error_that_names_them(tiny):
    message = message_of(*save_altered(tiny, lambda state: {"model": state, "ema": state}))
    assert "(model, ema)" in message


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload, 2))])
def test_a_pickle_with_code_is_refused_and_its_code_is_not_run(tiny, tmp_path, write):
    _, path, flags = tiny
    write({"out.2.bias": Payload(tmp_path / "marker")}, path)
    message = message_of(path, flags)
    assert str(path) in message
    assert "nothing in it was run" in message
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_truncated_file_is_an_error_that_names_it(tiny, tmp_path, share, name):
    network, _, flags = tiny
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    message = message_of(path, flags)
    assert str(path) in message
    assert "get it again" in message


@pytest.mark.parametrize("text", ["these are not weights\n", "<html>404</html>", "{}", "weights\n" * 1000])
@pytest.mark.parametrize("name", ["note.pt", "note.safetensors"])
def test_a_text_file_is_an_error_that_names_it(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert str(tmp_path / name) in message_of(tmp_path / name, None)


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], {}, {"step": 3}, {"model": {"step": 3}}])
def test_a_file_without_a_state_dict_is_an_error(tmp_path, value):
    torch.save(value, tmp_path / "other.pt")
    assert "holds no state dict" in message_of(tmp_path / "other.pt", None)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    assert str(tmp_path / "none.pt") in message_of(tmp_path / "none.pt", None)


DPS_CONFIG = """
image_size: 256
num_channels: 128
num_res_blocks: 1
channel_mult: ""
learn_sigma: True
class_cond: False
use_checkpoint: False
attention_resolutions: 16
num_heads: 4
num_head_channels: 64
num_heads_upsample: -1
use_scale_shift_norm: True
dropout: 0.0
resblock_updown: True
use_fp16: False
use_new_attention_order: False
model_path: models/ffhq_10m.pt
"""


def test_a_yaml_file_in_the_fields_own_words_is_read(tmp_path):
    path = tmp_path / "model_config.yaml"
    path.write_text(DPS_CONFIG)
    config = load_settings(ADMConfig, path, {})
    assert config == ADMConfig()
    assert config.channel_mult == (1, 1, 2, 2, 4, 4)
    assert config.has_attention == (False, False, False, False, True, False)


def test_channel_mult_has_the_default_of_the_image_size():
    assert ADMConfig(image_size=64).channel_mult == (1, 2, 3, 4)
    assert ADMConfig(image_size=128).channel_mult == (1, 1, 2, 3, 4)


def test_an_unknown_flag_is_an_error_that_names_it_and_the_file(tiny, tmp_path):
    flags = write_flags(tmp_path, {**TINY, "num_chanels": 32})
    message = message_of(tiny[1], flags, OptionError)
    assert "unknown option num_chanels;" in message
    assert str(flags) in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_cond", True),
        ("predict_xstart", True),
        ("num_heads_upsample", 2),
        ("rescale_timesteps", True),
        ("learn_sigma", 1),
        ("image_size", "16"),
        ("image_size", 15),
        ("num_res_blocks", 0),
        ("num_channels", 48),
        ("channel_mult", "0.5,1"),
        ("channel_mult", ""),
        ("channel_mult", "one"),
        ("channel_mult", "1,0"),
        ("channel_mult", {"a": 1}),
        ("attention_resolutions", "5"),
        ("attention_resolutions", "0"),
        ("num_head_channels", 24),
        ("num_head_channels", 0),
        ("noise_schedule", "sigmoid"),
        ("diffusion_steps", 20),
    ],
)
def test_a_value_that_cannot_be_converted_is_an_error_that_names_the_flag(tmp_path, name, value):
    flags = write_flags(tmp_path, {**TINY, name: value})
    with pytest.raises(OptionError) as caught:
        load_settings(ADMConfig, flags, {})
    assert name in str(caught.value)
    assert str(flags) in str(caught.value)


def test_a_fixed_number_of_heads_on_several_widths_is_an_error_that_says_so():
    flags = {"num_head_channels": -1, "attention_resolutions": "32,16"}
    with pytest.raises(OptionError, match="num_heads 4 with attention on 256, 512 channels"):
        load_settings(ADMConfig, None, flags)


@pytest.mark.parametrize("text", ["[1, 2]", "image_size: [", "\x00", "image_size: 16: 3"])
@pytest.mark.parametrize("name", ["flags.yaml", "flags.json"])
def test_a_file_that_holds_no_flags_is_an_error_that_names_it(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError) as caught:
        load_settings(ADMConfig, tmp_path / name, {})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_config_file_is_an_error_that_names_it(tiny):
    with pytest.raises(FacePriorError, match=r"nowhere\.yaml"):
        load_adm_checkpoint(tiny[1], Path("nowhere.yaml"))
