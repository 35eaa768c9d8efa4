"""Our operators against flash-linear-attention's own kernels, and our operators around them.

Without a GPU the kernels run in Triton's interpreter, in a process of its own. fla and triton lie
in a folder of their own that only this process looks into: transformers hands CPU tensors to fla
where it finds it.
"""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[2]
KERNELS = Path(sys.prefix) / "fla"
OPERATORS = ("gated_delta_rule", "kimi_delta_attention", "ssd")
TOLERANCE = {"o": 1e-5, "S": 1e-5}
"""Relative errors allowed in float32; 1e-4 for the gradients."""


@pytest.fixture(scope="session")
def interpreted():
    """Case -> tensor -> relative error, from the interpreter's process."""
    if not (KERNELS / "fla").is_dir():
        pytest.skip(f"fla and triton are not in {KERNELS}: make .venv/dev puts them there")
    paths = os.pathsep.join(map(str, (ROOT, KERNELS)))
    run = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "our chunked form against fla's fused_recurrent_gated_delta_rule",
        "our chunked form against fla's fused_recurrent_simple_gla",
        "our operator around fla's gated delta rule, whole rows",
        "our operator around fla's gated delta rule, documents and states",
        "our operator around fla's KDA, whole rows",
        "our operator around fla's KDA, documents and states",
        "our operator around fla's simple GLA, whole rows",
        "our operator around fla's simple GLA, documents and states",
    ],
)
def test_equal_in_value_and_gradient_under_the_interpreter(interpreted, case):
    assert interpreted[case]
    for tensor, error in interpreted[case].items():
        assert error <= TOLERANCE.get(tensor, 1e-4), tensor


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_the_operators_are_registered_right_and_leave_no_graph_break(interpreted, operator):
    checked = interpreted[f"opcheck {operator}"]
    assert set(checked) == {"test_schema", "test_autograd_registration", "test_faketensor"}
    assert all(result == 0 for result in checked.values())
    assert interpreted[f"compiled {operator}"]["o"] == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    @pytest.fixture
    def operator(self, request):
        from models.ops.operator import operators_of

        return operators_of()[request.param]

    @pytest.mark.parametrize("operator", OPERATORS, indirect=True)
    def test_fla_equals_the_definition_in_bfloat16(self, operator):
        from models.ops import preflight

        device = torch.device("cuda")
        if why := preflight.cannot_run(operator, "fla", device):
            pytest.skip(why)
        found = preflight.examine(operator, "fla", device, torch.bfloat16)
        if "on Hopper" in found.problem:
            pytest.skip(found.problem)
        assert found.problem == ""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("operator", OPERATORS, indirect=True)
    def test_chunked_equals_the_definition(self, operator, dtype):
        from models.ops import preflight

        found = preflight.examine(operator, "chunked", torch.device("cuda"), dtype)
        assert found.problem == ""

    @pytest.mark.parametrize("backend", ["chunked", "fla"])
    @pytest.mark.parametrize("operator", OPERATORS, indirect=True)
    def test_compiled_without_a_graph_break_gives_what_eager_gives(self, operator, backend):
        from models.ops import preflight

        device = torch.device("cuda")
        if why := preflight.cannot_run(operator, backend, device):
            pytest.skip(why)
        if "on Hopper" in preflight.examine(operator, backend, device, torch.bfloat16).problem:
            pytest.skip("fla refuses its backward pass with this Triton on Hopper")
        function = operator.form(backend)
        leaves = [x.requires_grad_() for x in operator.inputs(device, torch.bfloat16)]

        def loss(*x):
            return function(*x)[0].float().sin().sum()

        expected = torch.autograd.grad(loss(*leaves), leaves)
        compiled = torch.compile(loss, fullgraph=True)
        for a, e in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
            assert relative(a, e) < 2e-2


def relative(actual, expected):
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def make_the_interpreter_fit_for_fla():
    """Two things fla's kernels ask that Triton's interpreter lacks: timings to choose a
    configuration by (the first is taken), and loop indices that can be cast."""
    from triton.runtime.autotuner import Autotuner

    run = Autotuner.run

    def run_first(self, *arguments, **options):
        self.configs = self.configs[:1]
        return run(self, *arguments, **options)

    Autotuner.run = run_first
    import fla.ops.gated_delta_rule
    import fla.ops.kda
    import fla.ops.simple_gla  # noqa: F401

    class Index(int):
        def to(self, _dtype):
            return self

    def indices(*bounds):
        return map(Index, builtins.range(*(int(x) for x in bounds)))

    for name, module in sys.modules.items():
        if name.startswith("fla.ops"):
            module.__dict__["range"] = indices


def results(function, arguments, state, borders=None):
    leaves = [x.clone().requires_grad_() for x in arguments]
    if state is not None:
        state = state.clone().requires_grad_()
    o, S = function(
        *leaves, initial_state=state, output_final_state=state is not None, cu_seqlens=borders
    )
    generator = torch.Generator().manual_seed(1)
    outputs = [o] if S is None else [o, S]
    total = sum(
        (x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum()
        for x in outputs
    )
    wanted = leaves if state is None else [*leaves, state]
    gradients = torch.autograd.grad(total, wanted)
    names = ["o", "dq", "dk", "dv", "dg", "dbeta"][: 1 + len(leaves)]
    if state is not None:
        names = [names[0], "S", *names[1:], "dS"]
    return dict(zip(names, [*(x.detach() for x in outputs), *gradients], strict=True))


def compare(actual, expected):
    return {name: relative(actual[name], expected[name]) for name in actual}


def under_the_interpreter():
    make_the_interpreter_fit_for_fla()
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
    from fla.ops.simple_gla import fused_recurrent_simple_gla

    from models.mixers.gdn import fla as gdn_fla
    from models.mixers.gdn import gated_delta_rule
    from models.mixers.kda import fla as kda_fla
    from models.mixers.kda import kimi_delta_attention
    from models.mixers.mamba2 import fla as mamba2_fla
    from models.mixers.mamba2 import ssd

    B, T, H, K, V = 2, 66, 2, 16, 16
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    q, k = (F.normalize(randn(B, T, H, K), dim=-1) for _ in range(2))
    v, g, beta = randn(B, T, H, V), -randn(B, T, H).abs(), 2 * torch.sigmoid(randn(B, T, H))
    borders = torch.tensor([0, 3, T, T + 65, B * T])
    delta, shared = [q, k, v, g, beta], [q[:, :, :1], k[:, :, :1], v, g]
    # By e^-100 in a chunk and more, where dividing by decays overflows.
    channels = [q, k, v, g[..., None] * 4 * torch.rand(B, T, H, K, generator=generator), beta]
    state, states = randn(B, H, K, V), randn(4, H, K, V)
    found = {}

    with torch.no_grad():  # it has no backward pass
        theirs = fused_recurrent_gated_delta_rule(
            q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True
        )
        ours = gated_delta_rule.chunked(*delta, initial_state=state, output_final_state=True)
    found["our chunked form against fla's fused_recurrent_gated_delta_rule"] = compare(
        dict(zip("oS", ours, strict=True)), dict(zip("oS", theirs, strict=True))
    )

    def recurrent(q, k, v, g, initial_state, output_final_state, cu_seqlens):
        q, k = (x.repeat_interleave(H, dim=2) for x in (q, k))
        return fused_recurrent_simple_gla(
            q, k, v, g=g, scale=1.0, initial_state=initial_state,
            output_final_state=output_final_state, cu_seqlens=cu_seqlens,
        )  # fmt: skip

    found["our chunked form against fla's fused_recurrent_simple_gla"] = compare(
        results(ssd.chunked, shared, state), results(recurrent, shared, state)
    )

    gdr = gdn_fla.gated_delta_rule, gdn_fla._gdr, gated_delta_rule.naive
    kda = kda_fla.kimi_delta_attention, kda_fla._kda, kimi_delta_attention.naive
    dual = mamba2_fla.ssd, mamba2_fla._ssd, ssd.naive
    for name, title, (kernel, operator, naive), arguments, scalars in (
        ("gated_delta_rule", "gated delta rule", gdr, delta, (None, None, 0.25)),
        ("kimi_delta_attention", "KDA", kda, channels, (None, None, 0.25)),
        ("ssd", "simple GLA", dual, shared, (None, None)),
    ):
        exact = [x.double() for x in arguments]
        found[f"our operator around fla's {title}, whole rows"] = compare(
            results(kernel, [x[:1] for x in arguments], None),
            results(naive, [x[:1] for x in exact], None),
        )
        found[f"our operator around fla's {title}, documents and states"] = compare(
            results(kernel, arguments, states, borders),
            results(naive, exact, states.double(), borders),
        )
        short = [x[:1, :5].detach().requires_grad_() for x in arguments]
        heads = [x.expand(-1, -1, H, -1).contiguous() for x in short[:2]]
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        whole = [x.detach().contiguous().requires_grad_() for x in (*heads, *short[2:])]
        outcome = torch.library.opcheck(operator, (*whole, *scalars, False), test_utils=checks)
        found[f"opcheck {name}"] = {k: 0 if v == "SUCCESS" else 1 for k, v in outcome.items()}

        compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
        found[f"compiled {name}"] = compare(
            results(compiled, short, None), results(kernel, short, None)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    under_the_interpreter()
