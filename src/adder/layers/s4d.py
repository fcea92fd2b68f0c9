"""S4D: a diagonal state space model for each channel (Gu, Gupta, Goel & Re 2022, arXiv:2206.11893)."""

from collections.abc import Sequence
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from adder.errors import UsageError
from adder.layers.linear_ssm import LinearSSM, Step, Tables
from adder.layers.linear_ssm_options import Options
from adder.ops import diagonal_kernel
from adder.ops.dplr_kernel.discrete import pair, unpair
from adder.phi import phi1
from adder.theory.hippo import diagonal

SEVERAL = {"diag": ("inv", "lin")}
METHODS = ("zoh", "bilinear", "dss")


class S4D(LinearSSM):
    """S4D: y, state = layer(u, state), a diagonal linear system for each channel.

        K[l] = 2 Re sum_j C_j Bbar_j Abar_j^l + D [l = 0]

    Args:
        channels, state_size: h and n, as in `LinearSSM`.
        init: A at the start: "legs" (where none is given), "inv", "lin", "inv2", "quad", "rand", "real" (see
            `adder.theory.diagonal`), a sequence of names, which the n_ssm copies take in turn, or "diag" for inv
            and lin.
        method: "zoh", "bilinear", or "dss", whose kernel is normalised over its length: no recurrence, no padding.
        real: A, B and C are real and state_size is their number: exponential moving averages.
        options: those of `LinearSSM`: channels_out, bidirectional, n_ssm, dt_min, dt_max, lr, l_max, and so on.

    Example:
        >>> layer = S4D(4, 8)
        >>> u = torch.randn(2, 50, 4)
        >>> whole, _ = layer(u)
        >>> first, state = layer(u[:, :30], layer.initial_state(2))
        >>> second, state = layer(u[:, 30:], state)
        >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-5)
        True
    """

    def __init__(
        self,
        channels: int,
        state_size: int = 64,
        *,
        init: str | Sequence[str] | None = None,
        method: str = "zoh",
        real: bool = False,
        **options: Unpack[Options],
    ):
        self.complex_state = not real
        if not real and isinstance(state_size, int) and state_size % 2:
            raise UsageError(
                f"S4D: state_size {state_size} is odd, expected pairs: give an even one, or real=True"
            )
        super().__init__(channels, state_size, **options)
        self._require(method in METHODS, f"method {method!r} is not one of {', '.join(METHODS)}")
        self._require(method != "dss" or self.l_max is None, "method 'dss' has no l_max")
        self.method = method
        self._require(
            self.bandlimit is None or not real, "bandlimit needs complex eigenvalues: real=False"
        )
        names = self._mixture(("real" if real else "legs") if init is None else init, SEVERAL)
        self._require(
            not real or set(names) == {"real"},
            "real=True has the init 'real' alone: others are complex",
        )
        with torch.device("cpu"):
            systems = [diagonal(name.removeprefix("diag-"), 2 * self.modes) for name in names]
        Lambda, B = (torch.stack(each) for each in zip(*systems, strict=True))
        self._register_system(Lambda.real if real else Lambda, B.real if real else B)

    def _system(self, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A (h m), B (h m), C (c h m), dt (h) or (h m)."""
        B = self._spread(self._number(self.B))
        return self.eigenvalues(), B, self._outputs(rate), self.step_sizes(rate)

    def kernel(self, length: int, rate: float = 1.0) -> Float[Tensor, "c h l"]:
        """The convolution kernel of `length` taps; with `bidirectional`, those of the future behind the others."""
        return diagonal_kernel(*self._system(rate), length, method=self.method)

    @property
    def depends_on_length(self) -> bool:
        """Whether the kernel of a longer input begins otherwise, as that of "dss" does: padding is not inert then."""
        return self.method == "dss"

    def initial_state(self, batch_size: int) -> Tensor:
        """As in `LinearSSM`; "dss" has no state and refuses."""
        self._require(
            self.method != "dss", "method 'dss' normalises over the whole length and has no state"
        )
        return super().initial_state(batch_size)

    def _discrete(self, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Abar (h m), Bbar (h m) and C (c h m), as wide as the state."""
        A, B, C, dt = self._system(rate)
        B, C, dt = B.to(A.dtype), C.to(A.dtype), dt.reshape(self.channels, -1)
        z = dt * A
        if self.method == "bilinear":
            return (1 + z / 2) / (1 - z / 2), dt * B / (1 - z / 2), C
        return z.exp(), dt * phi1(z) * B, C

    def _stepper(self, rate: float) -> Step:
        Abar, Bbar, C = self._discrete(rate)
        if not self.complex_state:
            return lambda state, u: _read(C, Abar * state + Bbar * u.unsqueeze(-1))

        def step(state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
            y, x = _read(C, Abar * unpair(state) + Bbar * u.unsqueeze(-1))
            return 2 * y.real, pair(x)

        return step

    def _tables(self, steps: int, rate: float) -> Tables:
        Abar, Bbar, C = self._discrete(rate)
        # (h t m), by doubling, so that a decay of zero is exact
        powers = torch.ones_like(Abar).unsqueeze(1)
        more = Abar.unsqueeze(1)
        while powers.shape[1] <= steps:
            powers = torch.cat([powers, powers * more], dim=1)
            more = more * more
        reached, power = powers[:, 1 : steps + 1], powers[:, steps]
        readout = C.unsqueeze(2) * reached
        impulse = Bbar.unsqueeze(1) * powers[:, :steps]  # the state that an input leaves
        kernel, writein = torch.einsum("chm,htm->cht", C, impulse), impulse.flip(1)
        if not self.complex_state:
            return Tables(kernel, readout, writein, lambda x: x * power)
        return Tables(
            2 * kernel.real,
            torch.cat([2 * readout.real, -2 * readout.imag], dim=-1),
            torch.cat([writein.real, writein.imag], dim=-1),
            lambda x: _rotate(x, power),
        )


def _read(C: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("chm,bhm->bch", C, x), x


def _rotate(x: Tensor, z: Tensor) -> Tensor:
    """Multiply the complex numbers whose real parts come first in x (b h 2m) by z (h m)."""
    real, imag = x.chunk(2, dim=-1)
    return torch.cat([real * z.real - imag * z.imag, real * z.imag + imag * z.real], dim=-1)
