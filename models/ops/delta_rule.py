"""What operators of the gated delta rule share, whose decay is one number a head or one a channel.

    S_t = Diag(exp g_t) S_{t-1};  S_t += beta_t k_t (v_t - S_tᵀ k_t)ᵀ;  o_t = S_tᵀ (scale q_t)

Inside a chunk of C tokens, from a state S at its start: writes W = (I + Diag(beta) A)⁻¹ Diag(beta)
(V - K' S), with A_ij what of key j is left at token i times k_iᵀ, j < i, and K' the keys times what
is left of the chunk's start (Yang, Kautz, Hatamizadeh 2025, section 3.3).

Shapes: B batch, T time, H heads, P = B·H, K key width, V value width, G decays of a head: 1 or K;
C chunk length, N chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.ops.chunks import compute_dtype, rows_by_document
from models.precision import in_own_precision


@in_own_precision
def naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition, one token at a time.

    q, k: [B, T, H, K]; v: [B, T, H, V]; g: [B, T, H, G] log decay (<= 0); beta: [B, T, H] write
    strength; scale: of the queries, K**-0.5 unless given; initial_state: [B, H, K, V].
    cu_seqlens: [n + 1] int, where documents begin among the B·T tokens, from 0 to B·T, every
    row's border among them; states are then [n, H, K, V], one a document.
    Returns o: [B, T, H, V] in v's dtype, and the final state if asked for, else None.
    """
    if cu_seqlens is not None:
        real, (q, k, v_, g, beta) = rows_by_document(cu_seqlens, q, k, v, g, beta)
        o, S = naive(
            q, k, v_, g, beta, scale, initial_state=initial_state, output_final_state=True
        )  # fmt: skip
        return o[real].view_as(v), S if output_final_state else None
    dtype = compute_dtype(v)
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    q, k, v_, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    S = v_.new_zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.to(dtype)
    out = []
    for t in range(T):
        S = S * g[:, t, :, :, None].exp()
        recalled = torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        write = (v_[:, t] - recalled) * beta[:, t, :, None]
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], write)
        out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t] * scale))
    return torch.stack(out, dim=1).to(v.dtype), S if output_final_state else None


@in_own_precision
def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The definition for one token, writing the new state into `state` [B, H, K, V], float32.

    q, k, v, g, beta: as `naive` has them, T = 1. Returns o: [B, 1, H, V] in v's dtype.
    """
    S = state.flatten(0, 1)  # [P, K, V]
    P, K, _ = S.shape
    q, k, v_ = (x.reshape(P, 1, -1).to(S.dtype) for x in (q, k, v))
    S.mul_(g.exp().reshape(P, -1, 1))
    write = torch.baddbmm(v_, k, S, alpha=-1).mul_(beta.reshape(P, 1, 1))
    S.baddbmm_(k.mT, write)
    return torch.bmm(q * K**-0.5, S).view(v.shape).to(v.dtype)


def solve(overlap: Tensor, beta: Tensor) -> Tensor:
    """(I + Diag(beta) A)⁻¹. overlap: A, [N, P, C, C], below the diagonal; beta: [N, P, C, 1]."""
    unit = torch.eye(overlap.shape[-1], dtype=overlap.dtype, device=overlap.device)
    return torch.linalg.solve_triangular(overlap * beta, unit, upper=False, unitriangular=True)


def walk(writes: Tensor, erases: Tensor, k_end: Tensor, keep: Tensor, S: Tensor) -> Tensor:
    """The states before each chunk and after the last, [N + 1, P, K, V].

    writes: [N, P, C, V], what a chunk would write after an empty state, made in place what it does
    write; erases: [N, P, C, K]; k_end: [N, P, C, K], keys times what is left of them at the chunk's
    end; keep: [N, P, G, 1], what is left of the state there; S: [P, K, V], the first.
    """
    states = S.new_empty(len(writes) + 1, *S.shape)
    states[0] = S
    for i in range(len(writes)):
        write = writes[i].baddbmm_(erases[i], states[i], alpha=-1)
        torch.mul(states[i], keep[i], out=states[i + 1])
        states[i + 1].baddbmm_(k_end[i].mT, write)
    return states


def walk_back(
    dwrites: Tensor,
    dy: Tensor,
    q_start: Tensor,
    erases: Tensor,
    k_end: Tensor,
    keep: Tensor,
    dS: Tensor,
) -> Tensor:
    """The states' adjoints [N + 1, P, K, V], from that of the last, dS [P, K, V].

    dwrites: [N, P, C, V] through the outputs of the chunk, made in place the whole adjoint;
    q_start: [N, P, C, K], queries times what is left of the chunk's start; dy: [N, P, C, V]
    adjoint of the outputs.
    """
    dstates = dS.new_empty(len(dwrites) + 1, *dS.shape)
    dstates[-1] = dS
    for i in reversed(range(len(dwrites))):
        dwrites[i].baddbmm_(k_end[i], dstates[i + 1])
        torch.mul(dstates[i + 1], keep[i], out=dstates[i])
        dstates[i].baddbmm_(q_start[i].mT, dy[i])
        dstates[i].baddbmm_(erases[i].mT, dwrites[i], alpha=-1)
    return dstates
