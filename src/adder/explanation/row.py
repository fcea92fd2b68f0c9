"""Where one output of a scan came from: the row of the map that the scan is, taken apart by source position.

    y[t] = sum_s M[t, s] u[s] + D u[t]        M[t, s] = C[t] . (prod_{r = s+1 .. t} exp(Delta[r] A)) Delta[s] B[s]

M is what Mamba has in the place of attention (Ali, Zimerman & Wolf 2024, arXiv:2403.01590); of S4 it is the kernel,
read backwards. u[s] is what the scan reads at s: in Mamba behind the short convolution, which mixes in the few tokens
before, and in any layer above the first, what the layers below made of all tokens up to s.

One sweep from t back to 0 carries w = C[t] prod exp(Delta[r] A): O(l d n), and no l x l matrix.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adder.errors import UsageError
from adder.layers.linear_ssm import LinearSSM
from adder.layers.selective import ScanInputs

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What the scan of one layer took in for its output at one token; d channels, all in float64.

    attention: M[t, s], (t + 1, d), a number for each source position s and channel.
    contributions: M[t, s] u[s], (t + 1, d).
    skip: D u[t], (d,).
    output: the scan's y[t], (d,): the contributions summed over s, and the skip.
    """

    layer: int
    token: int
    attention: Numbers
    contributions: Numbers
    skip: Numbers

    @property
    def output(self) -> Numbers:
        return self.contributions.sum(axis=0) + self.skip  # type: ignore[no-any-return]

    @property
    def shares(self) -> Numbers:
        """(t + 1,): |contributions| summed over channels, as parts of 1, without the skip; zeros where all are 0."""
        size = np.abs(self.contributions).sum(axis=1)
        return size / (size.sum() or 1.0)  # type: ignore[no-any-return]


def exact(x: Tensor) -> Tensor:
    """A tensor on the CPU, in float64, without gradient."""
    return x.detach().to("cpu", torch.float64)


def selective_row(inputs: ScanInputs, layer: int, token: int) -> Row:
    """The row of Mamba's scan, or of Mamba-2's, of the first sequence of a batch."""
    u, steps, A, B, C, D = (exact(each) for each in inputs)
    u, steps, B, C = u[0], steps[0], B[0], C[0]
    if u.ndim == 3:  # heads (l h p): A of a head for its one row of states, B and C of its group
        heads = A.shape[0]
        B, C = (each.repeat_interleave(heads // each.shape[1], dim=1) for each in (B, C))
        A, D = A[:, None], D if D.ndim == 2 else D[:, None]
    else:
        B, C = B[:, None], C[:, None]
    weight = (C[token] * torch.ones_like(A)).clone()  # (d n), or (h n)
    attention = torch.empty(token + 1, weight.shape[0], dtype=torch.float64)
    for s in range(token, -1, -1):
        attention[s] = steps[s] * (weight * B[s]).sum(dim=-1)
        weight = weight * torch.exp(steps[s, :, None] * A)
    if u.ndim == 3:
        attention = attention[:, :, None].expand(-1, -1, u.shape[-1])
    return _row(layer, token, attention, u, D)


def linear_row(layer_module: LinearSSM, u: Tensor, layer: int, token: int) -> Row:
    """The row of S4's convolution, or of S4D's, of the first sequence of a batch (b l h)."""
    K = exact(layer_module.kernel(token + 1))[0]  # (h l)
    return _row(layer, token, K.flip(1).T, exact(u)[0], exact(layer_module.D)[0])


def _row(layer: int, token: int, attention: Tensor, u: Tensor, D: Tensor) -> Row:
    contributions = attention * u[: token + 1]
    if not bool(contributions.isfinite().all()):
        raise UsageError(
            f"explain: layer {layer} took in numbers that are not finite: the model's weights are damaged, or too "
            "large for its type"
        )
    skip = (D * u[token]).flatten()
    each = (attention.flatten(1).numpy(), contributions.flatten(1).numpy())
    return Row(layer, token, each[0], each[1], skip.numpy())
