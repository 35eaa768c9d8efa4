"""The norm against torch's own function and against finite differences."""

import torch
import torch.nn.functional as F

from models.pointwise import FEW, rms_norm, step_norm


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def test_rms_norm_equals_torchs_in_value_and_gradient():
    x, weight = randn(2, 5, 12), randn(12, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), F.rms_norm(x, (12,), weight, 1e-5))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
    zero = torch.zeros(1, 12, requires_grad=True)
    rms_norm(zero, torch.ones(12), 1e-6).sum().backward()
    assert zero.grad.isfinite().all()


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = randn(4, 64).detach().bfloat16()
    expected = F.rms_norm(x.float(), (64,), torch.ones(64), 1e-6)
    torch.testing.assert_close(rms_norm(x, torch.ones(64), 1e-6), expected.bfloat16())


@torch.no_grad()
def test_a_steps_norm_is_torchs():
    weight = randn(12, seed=1).float()
    for rows in (1, 3, FEW):  # few values, and more than FEW
        x = randn(rows, 1, 2, 12).float()
        expected = F.rms_norm(x, (12,), weight, 1e-5)
        torch.testing.assert_close(step_norm(weight, 1e-5)(x), expected)
    for dtype in (torch.float64, torch.bfloat16):
        x = randn(3, 1, 12).to(dtype)
        expected = F.rms_norm(x.float(), (12,), weight, 1e-5).to(dtype)
        torch.testing.assert_close(step_norm(weight, 1e-5)(x), expected)
