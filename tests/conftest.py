from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from faceprior.corrector import BlindCorrector, Corrector, PaperCorrector
from faceprior.priors.adapter import Prior
from faceprior.priors.card import ModelCard
from faceprior.priors.residual_unet import GaussianResidualUNet

SIDE = 32


def linear_scheduler_config(steps=1000):
    """The same total noise for every number of steps."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": steps,
        "beta_start": 0.1 / steps,
        "beta_end": 20 / steps,
        "beta_schedule": "linear",
    }


def frozen(network):
    return network.eval().requires_grad_(requires_grad=False)


def randomise(network, seed, share=0.1):
    """Give every parameter a random part, zero-initialised convolutions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=share * fan_in**-0.5)
    return frozen(network)


def gaussian_network(steps=1000, seed=0):
    torch.manual_seed(seed)
    network = GaussianResidualUNet(
        sample_size=SIDE,
        rank=8,
        widths=(16, 32),
        blocks=(1, 1),
        num_train_timesteps=steps,
        beta_start=0.1 / steps,
        beta_end=20 / steps,
    )
    generator = torch.Generator().manual_seed(seed)
    gaussian = network.gaussian
    for half in gaussian.components:
        half.copy_(torch.linalg.qr(torch.randn(half.shape, generator=generator).T)[0].T)
    gaussian.mean.copy_(0.3 * torch.randn(gaussian.mean.shape, generator=generator))
    gaussian.component_std.copy_(2 + 4 * torch.rand(gaussian.component_std.shape, generator=generator))
    gaussian.remainder_std.fill_(0.3)
    gaussian.detail_std.fill_(0.15)
    network.error_std.copy_(torch.linspace(0.1, 0.4, steps))
    randomise(network.unet, seed, 0.05)
    nn.init.normal_(network.unet.conv_out.weight, std=0.05, generator=generator)
    return frozen(network)


def epsilon_network(seed=0):
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return randomise(network, seed)


def make_card(kind, name, steps=1000, prediction_type="epsilon"):
    return ModelCard(
        kind=kind,
        name=name,
        resolution=SIDE,
        schedule={**linear_scheduler_config(steps), "prediction_type": prediction_type},
    )


def make_prior(network, prediction_type, steps=1000):
    return Prior(network, make_card("prior", "tiny", steps, prediction_type))


def make_corrector(steps=1000, seed=0, *, kind="blind", stride=2):
    torch.manual_seed(seed)
    schedule = {"num_train_timesteps": steps, "beta_start": 0.1 / steps, "beta_end": 20 / steps}
    if kind == "blind":
        network = BlindCorrector(SIDE, stride, widths=(8, 16), blocks=(1, 1), **schedule)
        randomise(network, seed)
    else:
        small = {"block_out_channels": (16, 16), "attention": (False, True), "attention_head_dim": 8}
        network = PaperCorrector(SIDE, stride, norm_num_groups=8, **small, **schedule)
    nn.init.normal_(network.unet.conv_out.weight, std=0.02)
    return Corrector(frozen(network), make_card("corrector", "tiny-corrector", steps))


@pytest.fixture(scope="session")
def tiny():
    """Makers of tiny networks with random weights; all of the side `tiny.side`.

    `gaussian_prior` has the embedded prior's network (prediction type "sample"), `epsilon_prior` a `UNet2DModel`
    with six output channels. `steps` is T; the total noise is the same for each.
    """
    return SimpleNamespace(
        side=SIDE,
        scheduler_config=linear_scheduler_config,
        gaussian_network=gaussian_network,
        epsilon_network=epsilon_network,
        gaussian_prior=lambda steps=1000, seed=0: make_prior(gaussian_network(steps, seed), "sample", steps),
        epsilon_prior=lambda steps=1000, seed=0: make_prior(epsilon_network(seed), "epsilon", steps),
        prior=make_prior,
        corrector=make_corrector,
        randomise=randomise,
    )


@pytest.fixture
def rng():
    """Generator of a test's own random tensors."""
    return torch.Generator().manual_seed(1234)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 that is kept in memory."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_environment(server):
    """What finds a server as S3."""
    keys = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}
    return {**{f"AWS_{name}": value for name, value in keys.items()}, "AWS_ENDPOINT_URL": server}


@pytest.fixture
def bucket(request, s3_server, monkeypatch):
    """The URL of an empty bucket."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    url = f"s3://b-{abs(hash(request.node.name))}"
    s3fs.S3FileSystem().mkdir(url)
    return url
