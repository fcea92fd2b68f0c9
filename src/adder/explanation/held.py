"""How much of the past is still in a state: what the best linear reader of it can draw again, token by token.

From an empty state, a scan leaves in the state of a channel, after token t,

    h = G u        G[:, s] = (prod_{r = s+1 .. t} Abar[r]) Bbar[s]        n numbers, from t + 1 inputs u[s]

Let every input be of size 1 and independent of the others, and let every number of the state be known up to noise of
`precision` times its own root mean square, |G[i, :]|. With the rows of G scaled to length 1, and e the precision, the
least-squares estimate of the inputs, and the part of each that it recovers (of its variance), are

    u^ = G^T (G G^T + e^2 I)^-1 h          kept[s] = [G^T (G G^T + e^2 I)^-1 G]_ss, from 0 to 1

A state of n numbers holds n inputs at most: kept sums to trace(G G^T (G G^T + e^2 I)^-1) <= n. This is ridge
regression, or the posterior mean of a Gaussian (Bishop, Pattern Recognition and Machine Learning, 2006, section 2.3.3).

It asks nothing of A: S4's may have been trained away from HiPPO. While it is HiPPO-LegS, `adder.explanation.recall`
draws the past from the same state as the projection that LegS makes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adder.explanation.row import Numbers, exact
from adder.layers import S4D
from adder.layers.linear_ssm import LinearSSM
from adder.layers.selective import ScanInputs

# Each number of a state is known to a part in a thousand: between the roundings of bfloat16 and float16.
PRECISION = 1e-3
_BLOCK = 1 << 23


@dataclass(frozen=True)
class Recall:
    """The state of one layer after a token, and the inputs that can be drawn from it; d channels, all in float64.

    state: (d, n), the state itself; S4's complex numbers as n / 2 real parts, then n / 2 imaginary ones.
    inputs: (t + 1, d), u, what the scan read.
    drawn: (t + 1, d), u^, what the best linear reader of the state takes the inputs for.
    kept: (t + 1, d), the part of each input that it recovers, from 0 to 1.
    """

    state: Numbers
    inputs: Numbers
    drawn: Numbers
    kept: Numbers

    @property
    def held(self) -> Numbers:
        """(d,): how many tokens' inputs the state of each channel holds; n at most."""
        return self.kept.sum(axis=0)  # type: ignore[no-any-return]


def selective_recall(inputs: ScanInputs, token: int, precision: float = PRECISION) -> Recall:
    """Recall of Mamba's state, or of Mamba-2's, of the first sequence of a batch. Delta and B count as known."""
    u, steps, A, B = (exact(each) for each in inputs[:4])
    u, steps, B = u[0, : token + 1], steps[0, : token + 1], B[0, : token + 1]
    # exp of the sum of Delta behind s: what is left at the token of what s wrote.
    behind = steps.flip(0).cumsum(0).flip(0) - steps
    if u.ndim == 2:
        parts = [
            _read(
                torch.exp(behind[:, some, None] * A[some]) * steps[:, some, None] * B[:, None],
                u[:, some],
                precision,
            )
            for some in _blocks(len(u), *A.shape)
        ]
    else:  # heads: u (l h p), A (h); the p channels of a head share its G
        B = B.repeat_interleave(len(A) // B.shape[1], dim=1)
        width = torch.exp(behind * A) * steps
        parts = [
            _read(width[:, some, None] * B[:, some], u[:, some], precision)
            for some in _blocks(len(u), *B.shape[1:])
        ]
    return _joined(parts)


def linear_recall(
    ssm: LinearSSM, u: Tensor, token: int, precision: float = PRECISION
) -> Recall | None:
    """Recall of the state of an S4 or S4D, of the first sequence of a batch (b l h).

    None for S4D's method dss, which has no state. A layer with `l_max` keeps its last inputs as they are.
    """
    inputs = exact(u)[0, : token + 1]
    if isinstance(ssm, S4D) and ssm.method == "dss":
        return None
    if ssm.l_max is not None:
        kept = torch.zeros_like(inputs)
        kept[max(0, len(inputs) - ssm.l_max + 1) :] = 1
        state = torch.zeros(inputs.shape[1], ssm.l_max - 1, dtype=inputs.dtype)
        last = inputs[max(0, len(inputs) - ssm.l_max + 1) :]
        state[:, state.shape[1] - len(last) :] = last.T
        return Recall(*(x.numpy() for x in (state, inputs, kept * inputs, kept)))
    written = exact(
        ssm._tables(token + 1, 1.0).writein
    )  # (h l n), what each input leaves in the state
    parts = [
        _read(written[some].transpose(0, 1), inputs[:, some], precision)
        for some in _blocks(len(inputs), len(written), written.shape[-1])
    ]
    return _joined(parts)


def _blocks(length: int, channels: int, n: int) -> list[slice]:
    """Channels in groups, so that G of one group is no large thing."""
    count = max(1, _BLOCK // (length * n))
    return [slice(start, start + count) for start in range(0, channels, count)]


def _read(G: Tensor, u: Tensor, precision: float) -> tuple[Tensor, ...]:
    """State, inputs, drawn and kept of some channels: G (l d n), u (l d); or of heads: G (l h n), u (l h p)."""
    heads = u.ndim == 3
    u = u if heads else u[..., None]
    state = torch.einsum("ldn,ldp->dpn", G, u)
    size = G.square().sum(dim=0).sqrt()  # (d n)
    scale = torch.where(size > 0, size, 1.0)
    G = G / scale
    gram = torch.einsum("ldn,ldm->dnm", G, G)
    factor = torch.linalg.cholesky(gram + precision**2 * torch.eye(gram.shape[-1], dtype=G.dtype))
    found = torch.cholesky_solve((state / scale[:, None]).mT, factor)  # (d n p)
    drawn = torch.einsum("ldn,dnp->ldp", G, found)
    white = torch.linalg.solve_triangular(factor, G.permute(1, 2, 0), upper=False)  # (d n l)
    kept = white.square().sum(dim=1).T[..., None].expand_as(u)
    return state.flatten(0, 1), u.flatten(1), drawn.flatten(1), kept.flatten(1)


def _joined(parts: list[tuple[Tensor, ...]]) -> Recall:
    state, *rest = zip(*parts, strict=True)
    return Recall(torch.cat(state).numpy(), *(torch.cat(each, dim=1).numpy() for each in rest))
