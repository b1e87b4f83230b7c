import pytest
import torch

from faceprior.evaluation.metrics import psnr
from faceprior.training.blind import blind
from test_degradations import detailed_face, seeded


def draws(count=150, damaged=1.0, scales=(4.0, 32.0)):
    face = detailed_face(64)
    return face, [blind(face, scales, damaged, seeded(seed)) for seed in range(count)]


def test_a_draw_is_decided_by_its_generator_and_keeps_shape_and_range():
    face, pairs = draws(40)
    for seed, (clean, bad) in enumerate(pairs):
        again = blind(face, (4.0, 32.0), 1.0, seeded(seed))
        assert torch.equal(again[0], clean)
        assert torch.equal(again[1], bad)
        assert clean.shape == bad.shape == face.shape
        assert max(clean.abs().max(), bad.abs().max()) <= 1


def test_a_grey_or_toned_face_is_to_be_restored_grey_or_toned():
    face, pairs = draws(200, damaged=0.0)
    toned = [(clean, bad) for clean, bad in pairs if not torch.equal(clean, face)]
    assert 0.05 < len(toned) / len(pairs) < 0.2
    for clean, bad in toned:
        cast = clean.flatten(1).mean(1) - clean.mean()
        torch.testing.assert_close(bad.flatten(1).mean(1) - bad.mean(), cast, atol=0.02, rtol=0)


@pytest.mark.parametrize(("damaged", "least", "most"), [(0.0, 0, 0), (0.5, 0.35, 0.65), (1.0, 0.9, 1.0)])
def test_the_share_of_damaged_faces_is_what_was_asked_for(damaged, least, most):
    """A clean reduction has nothing above the Nyquist frequency of the smallest scale but what bicubic leaves."""
    _, pairs = draws(150, damaged)
    fine = torch.stack([torch.fft.fft2(bad[1]).abs()[20:45, 20:45].mean() for _, bad in pairs])
    clean = torch.stack([torch.fft.fft2(bad[1]).abs()[20:45, 20:45].mean() for _, bad in draws(150, 0.0)[1]])
    share = (fine > clean.max()).float().mean().item()
    assert share <= most
    assert share >= least * 0.4  # much damage is as smooth as a reduction


def test_a_larger_scale_loses_more():
    _, mild = draws(40, 0.0, (4.0, 4.0))
    _, heavy = draws(40, 0.0, (16.0, 16.0))
    losses = [sum(psnr(bad[None], clean[None]).item() for clean, bad in pairs) / 40 for pairs in (mild, heavy)]
    assert losses[0] > losses[1] + 3
