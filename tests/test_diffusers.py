"""What users of diffusers do to a pipeline acts, or is refused with a word."""

import copy
import json

import huggingface_hub
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)
from diffusers.callbacks import PipelineCallback
from diffusers.training_utils import EMAModel
from diffusers.utils import dynamic_modules_utils, hub_utils

import faceprior
from faceprior import load_prior
from faceprior.corrector import load_corrector
from faceprior.diffusers import BlindCorrector, FacePriorPipeline, GaussianResidualUNet, PaperCorrector
from faceprior.errors import DeviceError, OptionError, WeightsError
from test_pipeline import SIDE, faces, restore, same

TEMPLATE = ((0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.33, 0.75), (0.67, 0.75))
TOKEN = "of the hub"  # noqa: S105
WEIGHTS = "diffusion_pytorch_model"


def build(prior, corrector=None):
    config = {name: value for name, value in prior.card.schedule.items() if name != "_class_name"}
    pipeline = FacePriorPipeline(
        prior.network,
        DDIMScheduler(**config),
        corrector.network if corrector else None,
        card=prior.card,
        corrector_card=corrector.card if corrector else None,
    )
    return quiet(pipeline.to(torch.float32))


@pytest.fixture
def pipeline(tiny):
    return build(tiny.gaussian_prior(), tiny.corrector())


@pytest.fixture
def bare(tiny):
    return build(tiny.epsilon_prior())


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", ["blind", "paper"])
@pytest.mark.parametrize("prior", ["gaussian_prior", "epsilon_prior"])
def test_it_restores_the_bytes_of_the_pipeline_without_diffusers(tiny, tmp_path, prior, kind):
    prior, crt = getattr(tiny, prior)(), tiny.corrector(kind=kind)
    plain = quiet(faceprior.FacePriorPipeline(prior, crt))
    expected = restore(plain)
    assert same(restore(build(prior, crt)), expected)
    plain.save_pretrained(tmp_path / "plain")
    build(prior, crt).save_pretrained(tmp_path / "ours")
    for folder in ("plain", "ours"):
        for own in (faceprior.FacePriorPipeline, FacePriorPipeline):
            assert same(restore(quiet(own.from_pretrained(tmp_path / folder))), expected)
    written = {path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*") if path.is_file()}
    assert {
        path.relative_to(tmp_path / "ours") for path in (tmp_path / "ours").rglob("*") if path.is_file()
    } == written
    for name in (name for name in written if name.parent.name != "scheduler" and name.name != "card.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


# --- networks ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_network_is_a_model_of_diffusers(tiny, tmp_path, dtype):
    for kind in ("blind", "paper"):
        build(tiny.gaussian_prior(), tiny.corrector(kind=kind)).save_pretrained(tmp_path / kind)
    loaded, paper = (
        FacePriorPipeline.from_pretrained(tmp_path / kind, torch_dtype=dtype) for kind in ("blind", "paper")
    )
    kinds = {GaussianResidualUNet: loaded.unet, BlindCorrector: loaded.corrector, PaperCorrector: paper.corrector}
    for kind, network in kinds.items():
        folder = tmp_path / kind.__name__
        assert isinstance(network, kind)
        assert isinstance(network, ModelMixin)
        network.save_pretrained(folder)
        found = kind.from_pretrained(str(folder), torch_dtype=dtype)
        assert found.dtype == network.dtype == dtype
        assert dict(found.config) == {**network.config, "_name_or_path": str(folder)}
        for name, tensor in network.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)
            assert found.state_dict()[name].dtype == tensor.dtype
        made = kind.from_config(network.config)
        assert {name: value.shape for name, value in made.state_dict().items()} == {
            name: value.shape for name, value in network.state_dict().items()
        }
    load_corrector(tmp_path / "BlindCorrector")  # what a model of diffusers writes is ours, too


def test_a_pipeline_built_without_a_card_can_be_saved(tiny, tmp_path):
    built = quiet(FacePriorPipeline(tiny.epsilon_network(), DDPMScheduler()).to(torch.float32))
    built.save_pretrained(tmp_path)
    assert same(restore(FacePriorPipeline.from_pretrained(tmp_path)), restore(built))


# --- components ---


def test_another_network_is_the_one_that_restores(tiny, pipeline):
    other = tiny.gaussian_network(seed=1)
    expected = restore(build(tiny.gaussian_prior(seed=1), tiny.corrector()))
    pipeline.unet = other
    assert same(restore(pipeline), expected)
    pipeline.register_modules(unet=tiny.gaussian_network(seed=0))
    assert not torch.equal(restore(pipeline).images, expected.images)


def test_another_corrector_or_none_acts(tiny, pipeline):
    pipeline.corrector = tiny.corrector(seed=1).network
    assert same(restore(pipeline), restore(build(tiny.gaussian_prior(), tiny.corrector(seed=1))))
    pipeline.corrector = None
    assert pipeline.corrector_card is None
    assert same(restore(pipeline), restore(build(tiny.gaussian_prior())))
    pipeline.corrector = tiny.corrector(20).network
    with pytest.raises(OptionError, match="noise schedule"):
        restore(pipeline)


def test_averaged_weights_act(tiny, pipeline):
    average = EMAModel(tiny.gaussian_network(seed=1).parameters())
    average.copy_to(pipeline.unet.parameters())
    averaged = restore(pipeline)
    assert not torch.equal(averaged.images, restore(build(tiny.gaussian_prior(), tiny.corrector())).images)
    pipeline.unet = copy.deepcopy(pipeline.unet)
    assert same(restore(pipeline), averaged)


def test_a_compiled_network_is_the_one_that_restores(pipeline, tmp_path):
    expected, card = restore(pipeline), pipeline.card
    graphs = []

    def backend(graph, _example_inputs):
        graphs.append(graph)
        return graph.forward

    pipeline.unet = torch.compile(pipeline.unet, backend=backend)
    torch.testing.assert_close(restore(pipeline).images, expected.images, atol=1e-5, rtol=0)
    assert graphs
    assert pipeline.card == card
    pipeline.save_pretrained(tmp_path)
    assert same(restore(quiet(FacePriorPipeline.from_pretrained(tmp_path))), expected)


def test_the_card_goes_with_the_network(tiny, pipeline, tmp_path):
    pipeline = FacePriorPipeline(
        pipeline.unet,
        pipeline.scheduler,
        card=pipeline.card.__class__(**{**vars(pipeline.card), "template": TEMPLATE}),
    )
    pipeline.save_pretrained(tmp_path)
    loaded = FacePriorPipeline.from_pretrained(tmp_path)
    assert len(loaded.card.sha256) == 64
    loaded.unet = copy.deepcopy(loaded.unet)  # perhaps trained since: it can't be vouched for
    assert (loaded.card.name, loaded.card.sha256, loaded.card.template) == ("tiny", "", TEMPLATE)
    loaded.unet = tiny.epsilon_network()
    assert (loaded.card.name, loaded.card.sha256, loaded.card.template) == ("UNet2DModel", "", TEMPLATE)
    unet = GaussianResidualUNet.from_pretrained(tmp_path, subfolder="unet")
    by_hand = FacePriorPipeline(unet, pipeline.scheduler)
    assert by_hand.card.name == "tiny"


@pytest.mark.parametrize(
    ("name", "component", "word"),
    [
        ("unet", "a name", "unet is a str"),
        ("unet", torch.nn.Conv2d(3, 3, 1), "unet is a Conv2d"),
        ("unet", None, "unet is a NoneType"),
        ("scheduler", None, "scheduler is a NoneType"),
        ("scheduler", FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler has no beta_schedule"),
        ("scheduler", DDPMScheduler(beta_schedule="sigmoid"), "sigmoid"),
        ("scheduler", DDIMScheduler(rescale_betas_zero_snr=True), "zero terminal SNR"),
        ("corrector", torch.nn.Conv2d(3, 3, 1), "corrector is a Conv2d"),
    ],
)
def test_what_cannot_be_a_component_is_refused_at_once(pipeline, name, component, word):
    expected = restore(pipeline)
    with pytest.raises(WeightsError, match=word):
        setattr(pipeline, name, component)
    if not isinstance(component, str):  # diffusers itself stumbles over it
        with pytest.raises(WeightsError, match=word):
            pipeline.register_modules(**{name: component})
    assert same(restore(pipeline), expected)


# --- schedulers ---


def test_the_noise_schedule_and_prediction_type_of_another_scheduler_act(bare):
    expected = restore(bare)
    bare.scheduler = DDIMScheduler.from_config(bare.scheduler.config, beta_end=0.01)
    assert bare.card.schedule["beta_end"] == 0.01
    changed = restore(bare)
    assert not torch.equal(changed.images, expected.images)
    bare.scheduler = DDIMScheduler.from_config(bare.scheduler.config, prediction_type="v_prediction")
    assert bare.card.prediction_type == "v_prediction"
    assert not torch.equal(restore(bare).images, changed.images)


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        (EulerDiscreteScheduler, {}, "EulerDiscreteScheduler"),
        (DDPMScheduler, {}, "DDPMScheduler"),
        (DDIMScheduler, {"timestep_spacing": "trailing"}, "timestep_spacing"),
        (DDIMScheduler, {"clip_sample": False}, "clip_sample"),
    ],
)
def test_of_a_scheduler_that_would_sample_otherwise_a_warning_says_so(bare, kind, changes, word):
    expected = restore(bare)
    with pytest.warns(UserWarning, match=rf"of {word} .*solver"):
        bare.scheduler = kind.from_config(bare.scheduler.config, **changes)
    assert same(restore(bare), expected)


def test_the_class_of_a_saved_scheduler_stays(tiny, tmp_path):
    FacePriorPipeline(tiny.epsilon_network(), DDPMScheduler(beta_end=0.01)).save_pretrained(tmp_path)
    loaded = FacePriorPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is DDPMScheduler
    assert loaded.scheduler.config.beta_end == 0.01


# --- making one pipeline of another ---


@pytest.mark.filterwarnings("ignore:Accessing config attribute")
def test_from_pipe_and_components_give_the_same_pipeline(pipeline):
    expected = restore(pipeline)
    for twin in (
        FacePriorPipeline.from_pipe(pipeline),
        FacePriorPipeline(**pipeline.components),
    ):
        assert twin.unet is pipeline.unet
        assert same(restore(quiet(twin)), expected)
    twin = FacePriorPipeline.from_pipe(pipeline)
    assert (twin.card, twin.corrector_card) == (pipeline.card, pipeline.corrector_card)
    without = FacePriorPipeline.from_pipe(pipeline, corrector=None)
    assert without.corrector is None
    assert without.corrector_card is None


@pytest.mark.parametrize("kind", ["blind", "paper"])
def test_from_pipe_takes_over_what_was_saved_and_loaded(tiny, kind, tmp_path):
    build(tiny.gaussian_prior(), tiny.corrector(kind=kind)).save_pretrained(tmp_path)
    loaded = quiet(FacePriorPipeline.from_pretrained(tmp_path))
    twin = quiet(FacePriorPipeline.from_pipe(loaded))
    assert (twin.unet, twin.corrector) == (loaded.unet, loaded.corrector)
    assert same(restore(twin), restore(loaded))


def test_from_pipe_takes_a_plain_pipeline_of_diffusers(tiny):
    found = FacePriorPipeline.from_pipe(DDPMPipeline(tiny.epsilon_network(), DDPMScheduler()))
    assert same(restore(quiet(found)), restore(quiet(FacePriorPipeline(tiny.epsilon_network(), DDPMScheduler()))))


# --- saving ---


@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("variant", [None, "ema"])
def test_variant_and_format_name_the_files_and_are_found_again(pipeline, tmp_path, variant, safe_serialization):
    expected = restore(pipeline)
    pipeline.save_pretrained(tmp_path, variant=variant, safe_serialization=safe_serialization)
    middle, suffix = f".{variant}" if variant else "", "safetensors" if safe_serialization else "bin"
    for part in ("unet", "corrector"):
        assert {path.name for path in (tmp_path / part).glob(f"{WEIGHTS}*")} == {f"{WEIGHTS}{middle}.{suffix}"}
    loaded = FacePriorPipeline.from_pretrained(tmp_path, variant=variant, use_safetensors=safe_serialization)
    assert same(restore(quiet(loaded)), expected)
    assert len(loaded.card.sha256) == 64
    for wrong in ({"variant": "fp16"}, {"variant": variant, "use_safetensors": not safe_serialization}):
        with pytest.raises(WeightsError, match=f"holds no {WEIGHTS}"):
            FacePriorPipeline.from_pretrained(tmp_path, **wrong)


def test_two_variants_lie_side_by_side(tiny, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    other = build(tiny.gaussian_prior(seed=1), tiny.corrector(seed=1))
    other.save_pretrained(tmp_path, variant="ema")
    assert same(restore(quiet(FacePriorPipeline.from_pretrained(tmp_path))), restore(pipeline))
    assert same(restore(quiet(FacePriorPipeline.from_pretrained(tmp_path, variant="ema"))), restore(other))


def test_a_pipeline_saved_without_its_corrector_has_none(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    pipeline.without_corrector().save_pretrained(tmp_path)
    assert FacePriorPipeline.from_pretrained(tmp_path).corrector is None


def test_a_corrector_that_came_later_is_saved_and_one_that_was_taken_away_is_not(pipeline, tmp_path):
    expected = restore(pipeline)
    without = quiet(FacePriorPipeline(pipeline.unet, pipeline.scheduler, card=pipeline.card))
    without.corrector = pipeline.corrector
    without.save_pretrained(tmp_path)
    assert same(restore(quiet(FacePriorPipeline.from_pretrained(tmp_path))), expected)
    without.corrector = None
    without.save_pretrained(tmp_path)
    assert FacePriorPipeline.from_pretrained(tmp_path).corrector is None


def test_a_pipeline_is_pushed_to_the_hub_whole(pipeline, tmp_path, monkeypatch):
    asked, uploaded = [], {}

    def create_repo(repo_id, **options):
        asked.append((repo_id, options))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{repo_id}")

    def upload(_self, folder, repo_id, **options):
        root = tmp_path.__class__(folder)
        uploaded[repo_id] = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        asked.append((repo_id, options))

    monkeypatch.setattr(hub_utils, "create_repo", create_repo)
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: huggingface_hub.ModelCard("faces"))
    monkeypatch.setattr(hub_utils, "populate_model_card", lambda card: card)
    monkeypatch.setattr(FacePriorPipeline, "_upload_folder", upload)
    pipeline.save_pretrained(
        tmp_path / "faces", push_to_hub=True, variant="fp16", token=TOKEN, private=True, commit_message="First"
    )
    assert [repo_id for repo_id, _ in asked] == ["faces", "someone/faces"]
    assert (asked[0][1]["token"], asked[0][1]["private"]) == (TOKEN, True)
    assert (asked[1][1]["token"], asked[1][1]["commit_message"]) == (TOKEN, "First")
    written = {
        str(path.relative_to(tmp_path / "faces")) for path in (tmp_path / "faces").rglob("*") if path.is_file()
    }
    assert uploaded["someone/faces"] == written | {"README.md"}
    assert f"unet/{WEIGHTS}.fp16.safetensors" in written


def test_what_save_pretrained_cannot_do_is_refused(pipeline, tmp_path):
    with pytest.raises(OptionError, match="max_shard_size"):
        pipeline.save_pretrained(tmp_path / "saved", max_shard_size="5MB")
    with pytest.raises(OptionError, match="push_to_hub=True"):
        pipeline.save_pretrained(tmp_path / "saved", repo_id="someone/faces")
    assert not (tmp_path / "saved").exists()


# --- loading ---


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_options_for_the_hub_reach_it(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **options: asked.append(options) or str(saved)
    )
    options = {"revision": "v2", "cache_dir": "there", "token": TOKEN, "local_files_only": False}
    FacePriorPipeline.from_pretrained("someone/faces", **options, force_download=True)
    assert {**asked[0], "allow_patterns": None} == {**options, "force_download": True, "allow_patterns": None}
    assert all(later["local_files_only"] and not later["force_download"] for later in asked[1:])  # once is enough
    asked.clear()
    FacePriorPipeline.from_pretrained("someone/faces", local_files_only=True)
    assert all(options["local_files_only"] for options in asked)


def test_a_number_format_and_a_device_act(saved):
    for name in ("torch_dtype", "dtype"):
        loaded = FacePriorPipeline.from_pretrained(saved, **{name: torch.bfloat16})
        assert loaded.unet.unet.dtype == torch.bfloat16
        assert loaded.corrector.dtype == torch.bfloat16
        assert loaded.unet.gaussian.mean.dtype == torch.float32
    assert FacePriorPipeline.from_pretrained(saved, device_map="cpu").device.type == "cpu"
    assert FacePriorPipeline.from_pretrained(saved, device_map="balanced").device.type in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceError, match="tpu"):
        FacePriorPipeline.from_pretrained(saved, device_map="tpu")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"torch_dtype": "auto"}, "torch_dtype is 'auto'"),
        ({"torch_dtype": {"unet": torch.bfloat16}}, "torch_dtype is"),
        ({"device_map": {"unet": "cpu"}}, "device_map is"),
        ({"safety_checker": None, "low_cpu_mem_usage": True}, "low_cpu_mem_usage, safety_checker"),
        ({"custom_pipeline": "one"}, "custom_pipeline"),
    ],
)
def test_what_from_pretrained_cannot_do_is_refused(saved, options, word):
    with pytest.raises(OptionError, match=word):
        FacePriorPipeline.from_pretrained(saved, **options)


def test_components_take_the_place_of_saved_ones(tiny, saved):
    unet, corrector = tiny.gaussian_network(seed=1), tiny.corrector(seed=1).network
    scheduler = DDIMScheduler(**{**tiny.scheduler_config(), "prediction_type": "sample"})
    found = FacePriorPipeline.from_pretrained(saved, unet=unet, scheduler=scheduler, corrector=corrector)
    assert (found.unet, found.scheduler, found.corrector) == (unet, scheduler, corrector)
    assert same(restore(quiet(found)), restore(build(tiny.gaussian_prior(seed=1), tiny.corrector(seed=1))))
    with pytest.raises(OptionError, match="noise schedule"):
        FacePriorPipeline.from_pretrained(saved, corrector=tiny.corrector(20).network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diffusers_loads_the_folder_by_itself(pipeline, saved, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = DiffusionPipeline.from_pretrained(saved, trust_remote_code=True, torch_dtype=dtype)
    assert isinstance(loaded, FacePriorPipeline)
    ours = FacePriorPipeline.from_pretrained(saved, torch_dtype=dtype)
    assert (loaded.card, loaded.corrector_card) == (ours.card, ours.corrector_card)
    assert loaded.card.name == "tiny"
    assert loaded.unet.unet.dtype == dtype
    assert same(restore(quiet(loaded)), restore(quiet(ours)))


def test_a_trained_prior_is_loaded_by_diffusers_too(tiny, tmp_path, monkeypatch):
    from faceprior.priors import save_prior

    save_prior(tiny.gaussian_prior(), tmp_path / "prior")
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "prior", trust_remote_code=True)
    assert loaded.corrector is None
    assert same(restore(quiet(loaded)), restore(quiet(FacePriorPipeline.from_pretrained(tmp_path / "prior"))))


def test_no_path_of_the_machine_is_saved(saved, tmp_path):
    FacePriorPipeline.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert isinstance(json.loads(path.read_text()), dict)
    assert load_prior(tmp_path / "again").card.source == load_prior(saved).card.source


# --- calls ---


def test_interrupting_ends_every_batch_at_its_next_step(pipeline):
    seen = []

    def stop(pipe, index, t, tensors):
        seen.append((index, tensors["x0"].clone()))
        pipe._interrupt = index == 2 or pipe._interrupt
        return tensors

    options = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["x0"]}
    found = restore(pipeline, faces(2), batch_size=1, **options)
    assert [index for index, _ in seen] == [0, 1, 2, 0]
    last = torch.cat([seen[2][1], seen[3][1]])
    assert torch.equal((last.clamp(-1, 1) + 1) / 2, found.images)
    assert pipeline.interrupt
    assert found.images.shape == (2, 3, SIDE, SIDE)
    restore(pipeline)
    assert not pipeline.interrupt  # the next call begins anew


def test_a_callback_of_diffusers_says_which_tensors_it_wants(pipeline):
    seen = set()

    class Watch(PipelineCallback):
        tensor_inputs = ("sample", "x0")

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.update(callback_kwargs)
            return callback_kwargs

    restore(pipeline, callback_on_step_end=Watch(cutoff_step_ratio=0.5))
    assert seen == {"sample", "x0"}


@pytest.mark.parametrize("changed", ["x0", "latents"])
def test_a_callback_that_changes_what_cannot_be_changed_is_told(pipeline, changed):
    def change(pipe, index, t, tensors):
        return {**tensors, changed: tensors["x0"] + 1}

    with pytest.raises(OptionError, match="can replace sample"):
        restore(pipeline, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["sample", "x0"])


def test_offloaded_networks_restore_as_before(pipeline):
    expected = restore(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipeline.unet, "_hf_hook")
    for _ in range(2):
        assert same(restore(pipeline), expected)
    pipeline.remove_all_hooks()
    assert same(restore(pipeline), expected)


def test_to_takes_what_diffusers_takes(pipeline):
    assert pipeline.to("cpu", torch.bfloat16) is pipeline
    assert pipeline.unet.unet.dtype == torch.bfloat16
    assert pipeline.to(dtype=torch.float32, device="cpu").corrector.dtype == torch.float32
    assert pipeline.to("cpu", silence_dtype_warnings=True).unet.unet.dtype == torch.float32
