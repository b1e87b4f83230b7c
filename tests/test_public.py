"""Public priors: by name, downloaded once, checked, offline afterwards."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import UNet2DModel
from typer.testing import CliRunner

from adm_reference import ADMUNet, randomise
from faceprior.cli import app
from faceprior.errors import WeightsError
from faceprior.priors import adm, load_prior, store
from faceprior.priors.card import FFHQ_TEMPLATE
from fake_hub import COMMIT, Hub, point_to, serve

SIDE = 16
TEMPLATE = [[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.42, 0.6], [0.58, 0.6]]


class TinyConfig(adm.ADMConfig):
    image_size: int = SIDE
    num_channels: int = 32
    channel_mult: adm.Numbers = (1, 2)
    attention_resolutions: adm.Numbers = (8,)
    num_head_channels: int = 32


def write_card(folder, name, source, **more):
    (folder / name).mkdir(parents=True)
    card = {"kind": "prior", "name": name, "resolution": SIDE, "source": source, "licence": "MIT", **more}
    (folder / name / "card.json").write_text(json.dumps({"template": TEMPLATE, **card}))


def old_unet(seed=0):
    """A network as `google/ddpm-ema-celebahq-256` has it: its configuration, and the names of its attention."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=SIDE,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=8,
    ).eval()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = network.state_dict()
    for new, old in names.items():
        state = {key.replace(f".{new}.", f".{old}."): tensor for key, tensor in state.items()}
    return network, state


def as_bytes(value, path):
    torch.save(value, path)
    return path.read_bytes()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    public = tmp_path / "public"
    write_card(public, "tiny-adm", f"hf://someone/adm@{COMMIT}/diffusion_tiny.pt")
    parts = "{config.json,scheduler_config.json,diffusion_pytorch_model.bin}"
    write_card(public, "tiny-ddpm", f"hf://someone/ddpm@{COMMIT}/{parts}")
    monkeypatch.setattr(store, "_PUBLIC", public)
    monkeypatch.setattr(adm, "ADMConfig", TinyConfig)
    network, state = old_unet()
    schedule = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "variance_type": "fixed_small"}
    own = Hub()
    own.files = {
        "someone/adm/diffusion_tiny.pt": as_bytes(
            randomise(ADMUNet(SIDE, 32, 1, (1, 2), (8,), 32), 0).state_dict(), tmp_path / "adm.pt"
        ),
        "someone/ddpm/config.json": json.dumps({"_class_name": "UNet2DModel", **network.config}).encode(),
        "someone/ddpm/scheduler_config.json": json.dumps(schedule).encode(),
        "someone/ddpm/diffusion_pytorch_model.bin": as_bytes(state, tmp_path / "ddpm.bin"),
    }
    with serve(own, monkeypatch, tmp_path / "cache"):
        yield own


@pytest.fixture
def offline(monkeypatch):
    """Calling it takes the network away: nothing listens at port 9 of this machine."""

    def cut():
        point_to("http://127.0.0.1:9", monkeypatch)

    return cut


def test_a_checkpoint_is_known_by_name_and_served_without_a_network_afterwards(hub, offline):
    prior = load_prior("tiny-adm")
    content = hub.files["someone/adm/diffusion_tiny.pt"]
    assert (prior.card.name, prior.resolution, prior.card.licence) == ("tiny-adm", SIDE, "MIT")
    assert prior.card.sha256 == hashlib.sha256(content).hexdigest()
    assert prior.card.template == tuple(map(tuple, TEMPLATE))
    assert prior.card.schedule["variance_type"] == "learned_range"
    assert len(hub.ranges) == 1
    offline()
    again = load_prior("tiny-adm")
    x_t, t = torch.randn(1, 3, SIDE, SIDE), torch.tensor([500])
    assert torch.equal(again(x_t, t).eps, prior(x_t, t).eps)


def test_a_diffusers_network_with_the_names_of_its_time_is_known_by_name(hub, offline):
    prior = load_prior("tiny-ddpm")
    x_t, t = torch.randn(1, 3, SIDE, SIDE), torch.tensor([500])
    torch.testing.assert_close(prior(x_t, t).eps, old_unet()[0](x_t, t).sample)
    content = hub.files["someone/ddpm/diffusion_pytorch_model.bin"]
    assert prior.card.sha256 == hashlib.sha256(content).hexdigest()
    assert prior.card.schedule["variance_type"] == "fixed_small"
    offline()
    assert load_prior("tiny-ddpm").card == prior.card


def test_a_download_that_broke_off_goes_on_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 512)
    hub.breaks_off = 1000
    sha256 = load_prior("tiny-adm").card.sha256
    assert sha256 == hashlib.sha256(hub.files["someone/adm/diffusion_tiny.pt"]).hexdigest()
    assert hub.ranges in ([None, "bytes=512-"], [None, "bytes=1000-"])


def test_a_file_that_changed_in_the_cache_is_refused(hub, tmp_path):
    load_prior("tiny-adm")
    changed = randomise(ADMUNet(SIDE, 32, 1, (1, 2), (8,), 32), 1).state_dict()
    blob = next((tmp_path / "cache").rglob("diffusion_tiny.pt")).resolve()
    torch.save(changed, blob)
    with pytest.raises(WeightsError, match=r"is damaged: its sha256 is .* delete it") as caught:
        load_prior("tiny-adm")
    assert str(blob) in str(caught.value)


def test_without_a_network_one_line_says_what_to_get(hub, offline):
    offline()
    with pytest.raises(WeightsError, match=r"prior tiny-adm: .*cannot be reached.*diffusion_tiny\.pt of someone/adm"):
        load_prior("tiny-adm")


def test_what_the_hub_does_not_have_is_told_from_a_hub_that_cannot_be_reached(hub):
    del hub.files["someone/adm/diffusion_tiny.pt"]
    with pytest.raises(WeightsError, match=r"prior tiny-adm: .*did not deliver it"):
        load_prior("tiny-adm")


def test_a_file_of_the_authors_name_has_the_public_card(hub, tmp_path):
    path = tmp_path / "tiny.pt"
    path.write_bytes(hub.files["someone/adm/diffusion_tiny.pt"])
    card = load_prior(path).card
    assert (card.name, card.template) == ("tiny-adm", tuple(map(tuple, TEMPLATE)))
    assert hub.ranges == []
    assert load_prior(path.rename(tmp_path / "other.pt")).card.name == "other"


def test_weights_of_another_size_than_the_card_says_are_refused(hub, tmp_path):
    path = store._PUBLIC / "tiny-adm" / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resolution": 64}))
    with pytest.raises(WeightsError, match="is for 16 pixels, tiny-adm for 64"):
        load_prior("tiny-adm")


def test_the_command_line_lists_fetches_and_converts_by_name(hub, offline, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app.app, list(map(str, arguments)), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "tiny-ddpm" in run("priors", "list")
    fetched = run("priors", "fetch", "tiny-adm", "tiny-ddpm").splitlines()
    assert [line.split(":")[0] for line in fetched] == ["tiny-adm", "tiny-ddpm"]
    assert hashlib.sha256(hub.files["someone/adm/diffusion_tiny.pt"]).hexdigest() in fetched[0]
    offline()
    run("priors", "convert", "tiny-adm", "--output", tmp_path / "converted")
    assert load_prior(tmp_path / "converted").card.template == tuple(map(tuple, TEMPLATE))


@pytest.mark.parametrize("name", ["ffhq-256", "celebahq-256"])
def test_the_cards_of_public_priors_say_where_they_are_and_how_faces_stand(name):
    card = store.public_cards("prior")[name]
    assert (card.name, card.resolution, len(card.template)) == (name, 256, 5)
    assert card.source.startswith("hf://")
    assert "page" in card.licence
    assert Path(store._PUBLIC / name / "card.json").is_file()
    offset = (torch.tensor(card.template) - torch.tensor(FFHQ_TEMPLATE)).abs().max()
    assert offset < 0.03  # both are cut out by the same rule
