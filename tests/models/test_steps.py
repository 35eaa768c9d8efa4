"""A token at a time, the recurrent operators are their definitions."""

import pytest
import torch

from models.mixers.gdn import gated_delta_rule, operator
from models.mixers.kda import kimi_delta_attention
from models.mixers.kda import operator as kda_operator
from models.mixers.mamba2 import operator as ssd_operator
from models.mixers.mamba2 import ssd

CASES = [
    (gated_delta_rule.step, gated_delta_rule.naive, operator.inputs),
    (kimi_delta_attention.step, kimi_delta_attention.naive, kda_operator.inputs),
    (ssd.step, ssd.naive, ssd_operator.inputs),
]


@pytest.mark.parametrize(("step", "naive", "inputs"), CASES, ids=["gdn", "kda", "ssd"])
def test_steps_walk_as_the_definition_does(step, naive, inputs):
    arguments = [x[:, :5] for x in inputs(torch.device("cpu"), torch.float32)]
    expected, final = naive(*arguments, output_final_state=True)
    state = torch.zeros_like(final)
    steps = [step(*(x[:, t : t + 1] for x in arguments), state) for t in range(5)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)


def test_ssd_steps_with_a_q_and_k_for_several_heads_each():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 2, 5, generator=generator) for _ in "qk")
    v = torch.randn(2, 3, 4, 6, generator=generator)
    g = -torch.rand(2, 3, 4, generator=generator)
    expected, final = ssd.naive(q, k, v, g, output_final_state=True)
    state = torch.zeros_like(final)
    steps = [ssd.step(*(x[:, t : t + 1] for x in (q, k, v, g)), state) for t in range(3)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)
