"""S4: a state space model with a HiPPO matrix, diagonal plus low rank, for each channel.

Gu, Goel & Re 2021, Efficiently Modeling Long Sequences with Structured State Spaces, arXiv:2111.00396.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from adder.errors import UsageError
from adder.layers.linear_ssm import LinearSSM, Step, Tables
from adder.layers.linear_ssm_options import Options
from adder.ops import dplr_kernel
from adder.ops.dplr_kernel.discrete import bilinear, pair, unpair
from adder.ops.dplr_kernel.portable import krylov, squares
from adder.theory.dplr import diagonal_plus_low_rank, nplr

SEVERAL = {"hippo": ("legs", "fourier"), "all": ("legs", "fourier", "dplr-inv", "dplr-lin")}


class S4(LinearSSM):
    """S4: y, state = layer(u, state), a linear system with A = Lambda - P P* for each channel.

        K[l] = C Abar^l Bbar + D [l = 0], discretised by the bilinear transform

    P is tied to its conjugate, so A stays stable under any gradient step. The parameters give kernels of every
    length: C is that of the recurrence, and nothing is stored but parameters.

    Args:
        channels, state_size: h and n, as in `LinearSSM`.
        measure: A at the start: a HiPPO measure such as "legs", "legt", "lagt", "fourier" (see `adder.hippo`); "dplr-"
            and one of S4D's diagonals, with a random P; a sequence of names, which the n_ssm copies take in turn;
            "hippo" for legs and fourier, "all" for those, dplr-inv and dplr-lin. An undamped start, as fourier's,
            begins at Re A = -1e-4: the transform of Re A cannot give 0.
        rank: r, of P; None for the least that the measure allows, at least 1.
        options: those of `LinearSSM`: channels_out, bidirectional, n_ssm, dt_min, dt_max, lr, l_max, and so on.

    Example:
        >>> layer = S4(4, 8)
        >>> u = torch.randn(2, 50, 4)
        >>> whole, _ = layer(u)
        >>> first, state = layer(u[:, :30], layer.initial_state(2))
        >>> second, state = layer(u[:, 30:], state)
        >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-5)
        True
    """

    P: Tensor

    def __init__(
        self,
        channels: int,
        state_size: int = 64,
        *,
        measure: str | Sequence[str] = "legs",
        rank: int | None = None,
        **options: Unpack[Options],
    ):
        if isinstance(state_size, int) and state_size % 2:
            raise UsageError(
                f"S4: state_size {state_size} is odd, expected pairs: give an even one"
            )
        super().__init__(channels, state_size, **options)
        self._require(
            self.dt.ndim == 1, "dt_tie=False is not served: one step size for each channel"
        )
        names = self._mixture(measure, SEVERAL)
        with torch.device("cpu"):
            widest = max(len(_start(name, state_size, rank)[1]) for name in set(names))
            systems = [_start(name, state_size, widest) for name in names]
        Lambda, P, B = zip(*systems, strict=True)
        self._register_system(torch.stack(Lambda), torch.stack(B))
        self._register("P", torch.stack(P, dim=1), "P")

    def _system(self, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Lambda (h m), P (r h m), B (h m), C (c h m), dt (h)."""
        P, B = (self._spread(self._number(each)) for each in (self.P, self.B))
        return self.eigenvalues(), P, B, self._outputs(rate), self.step_sizes(rate)

    def kernel(self, length: int, rate: float = 1.0) -> Float[Tensor, "c h l"]:
        """The convolution kernel of `length` taps; with `bidirectional`, those of the future behind the others."""
        return dplr_kernel(*self._system(rate), length)

    def _tables(self, steps: int, rate: float) -> Tables:
        Abar, Bbar, c, _ = bilinear(*self._system(rate))
        powers = squares(Abar, steps)
        reached = [power for bit, power in enumerate(powers) if steps >> bit & 1]
        # (h t n): the state that an input leaves
        impulse = krylov(Bbar.unsqueeze(-2), [power.mT for power in powers], steps)

        def advance(x: Tensor) -> Tensor:
            for power in reached:
                x = torch.einsum("hij,bhj->bhi", power, x)
            return x

        kernel = torch.einsum("chn,htn->cht", c, impulse)
        return Tables(
            kernel, krylov(c.unsqueeze(-2) @ Abar, powers, steps), impulse.flip(1), advance
        )

    def _stepper(self, rate: float) -> Step:
        """x <- (I - dt/2 A)^-1 ((I + dt/2 A) x + dt B u), by Woodbury's identity on vectors: O(n r) for each step.

        In complex halves P* x of both halves is 2 Re(P . x), and rho = 1 / (1 - dt/2 Lambda).
        """
        Lambda, P, B, C = (each.to(torch.complex128) for each in self._system(rate)[:4])
        half = self.step_sizes(rate).unsqueeze(-1) / 2
        rho = 1 / (1 - half * Lambda)
        right = (rho * P.conj()).movedim(0, 1)  # (h r m)
        small = 2 * half.unsqueeze(-1) * torch.einsum("hrm,shm->hrs", right, P).real
        small = small + torch.eye(len(P), dtype=small.dtype, device=small.device)
        correction = torch.linalg.solve(small.to(right.dtype), right).movedim(1, 0)

        def step(state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            x = unpair(state)
            x = (
                x
                + half * (Lambda * x - 2 * _low_rank(P, P.conj(), x))
                + 2 * half * B * u.unsqueeze(-1)
            )
            x = rho * x - 2 * half * _low_rank(rho * P, correction, x)
            return 2 * torch.einsum("chm,bhm->bch", C, x).real, pair(x)

        return step


def _low_rank(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """sum_r left_r Re(right_r . x): (r h m), (r h m), (b h m) to (b h m)."""
    return torch.einsum("rhm,brh->bhm", left, torch.einsum("rhm,bhm->brh", right, x).real + 0j)


def _start(name: str, n: int, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda (m), P (r m) and B (m) of a measure, or of "dplr-" and a diagonal."""
    if name.startswith("dplr-"):
        return diagonal_plus_low_rank(name.removeprefix("dplr-"), n, 1 if rank is None else rank)
    return nplr(name, n, rank)[:3]
