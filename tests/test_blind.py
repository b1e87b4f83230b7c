import pytest
import torch

from faceprior.evaluation.metrics import psnr
from faceprior.training.blind import blind, reframed
from test_degradations import detailed_face, seeded


def draws(count=150, damaged=1.0, scales=(4.0, 32.0)):
    face = detailed_face(64)
    return face, [blind(face, seeded(seed), scales, damaged=damaged) for seed in range(count)]


def test_a_draw_is_decided_by_its_generator_and_keeps_shape_and_range():
    face, pairs = draws(40)
    for seed, (clean, bad) in enumerate(pairs):
        again = blind(face, seeded(seed), (4.0, 32.0), damaged=1.0)
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


def test_a_face_is_framed_as_closely_as_was_drawn():
    place = torch.linspace(-1, 1, 64).expand(3, 64, 64)  # pixel x of 64 is x / 32 − 1
    closer = reframed(place, (2.0, 2.0), torch.Generator())
    assert torch.allclose(closer[:, 16:48, 16:48], place[:, 16:48, 16:48] / 2, atol=0.01)
    wider = reframed(place, (0.8, 0.8), torch.Generator())
    assert torch.allclose(wider[:, 16:48, 16:48], place[:, 16:48, 16:48] / 0.8, atol=0.02)
    assert float(wider[0, 32, 0]) == pytest.approx(-0.8, abs=0.1)  # the mirror image of what lies inside


def test_framing_is_drawn_between_its_bounds_and_one_changes_nothing():
    face = torch.linspace(-1, 1, 64).expand(3, 64, 64)
    generator = torch.Generator().manual_seed(0)
    slopes = [float(reframed(face, (0.9, 1.3), generator)[0, 32, 40:42].diff()) for _ in range(60)]
    slope = float(face[0, 32, 40:42].diff())
    assert 0.75 * slope < min(slopes) < 0.82 * slope
    assert 1.05 * slope < max(slopes) < 1.15 * slope
    before = generator.get_state()
    assert reframed(face, (1.0, 1.0), generator) is face
    assert torch.equal(generator.get_state(), before)
