"""What S4 and S4D share: one linear time-invariant model for each channel, run as a convolution or as a recurrence.

    x' = A x + B u       y = C x + D u       discretised with a step size dt of each channel's own

S4 (arXiv:2111.00396), S4D (arXiv:2206.11893), How to Train Your HiPPO (arXiv:2206.12037).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers.linear_ssm_options import (
    TRANSFORMS,
    check_options,
    is_positive,
    learning_rates,
    what_came,
)
from adder.ops import long_convolution

BLOCK = 64  # steps that the recurrence takes at once
ONE_BY_ONE = 16  # shorter inputs are read step by step: the tables of a block would cost more

SMALLEST_DECAY = 1e-4  # of -Re A: a transform cannot give the zero of an undamped mode

# One step: (state (b h n), u (b h)) to (y (b c h), state), in float64.
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Tables(NamedTuple):
    """T steps of the recurrence at once, in float64.

    y[t] = sum_s kernel[t-s] u[s] + readout[t] x        x <- advance(x) + sum_t writein[t] u[t]
    """

    kernel: Float[Tensor, "c h t"]
    readout: Float[Tensor, "c h t n"]
    writein: Float[Tensor, "h t n"]
    advance: Callable[[Float[Tensor, "b h n"]], Float[Tensor, "b h n"]]


class LinearSSM(nn.Module, ABC):
    """y, state = layer(u, state): (b, l, channels) to (b, l, channels_out * channels), at any length, 1 included.

    With no state the layer is a convolution: training. With one it is a recurrence: `initial_state(batch_size)`
    before the first step, and the state that comes back to continue. Both give the same numbers, in any pieces.

    Args:
        channels: h, independent systems. state_size: n, real numbers kept by each; even, one of each conjugate pair
            is stored.
        channels_out: c, outputs of each channel; they come out as (c h), or as (h c) with `swap_channels`.
        bidirectional: a second kernel, over the future of a step, is added. Such a layer has no state.
        n_ssm: how many different (A, B, P) there are; channel i uses number i mod n_ssm. None: one for each.
        dt_min, dt_max: initial step sizes are log-uniform between them. dt_tie: one for each channel, not one for
            each of its eigenvalues. dt_transform: "exp" or "softplus" of the parameter; dt_fast: of its sinh.
        real_transform: Re A = -f(parameter), with f exp, softplus, relu, sigmoid or none. Only "none" can unlearn
            stability.
        lr: a learning rate of dt, A, P and B of their own, or a mapping with the keys dt, A, P, B, C; 0 freezes.
            `adder.layers.parameter_groups` hands them to the optimiser, without weight decay but for C.
        l_max: cut the kernel after so many taps. The state is then the last l_max - 1 inputs.
        bandlimit: leave out modes of a frequency above half of it, in cycles per step (0.5 at a rate of 1 is Nyquist
            at bandlimit 1).
        drop_kernel: dropout on the taps of the kernel, in training.
        deterministic: C reads the first mode, D is 1 and step sizes are evenly spaced, instead of drawn.

    A call takes `rate`: the step sizes are multiplied by it. A model trained on 16 kHz reads 8 kHz with rate=2.
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("dt", "A_real", "A_imag", "P", "B", "D")
    complex_state: bool = True
    dt: Tensor
    A_real: Tensor
    A_imag: Tensor
    B: Tensor
    C: Tensor

    def __init__(
        self,
        channels: int,
        state_size: int,
        *,
        channels_out: int = 1,
        bidirectional: bool = False,
        n_ssm: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        dt_fast: bool = False,
        real_transform: str = "exp",
        lr: float | Mapping[str, float] | None = None,
        l_max: int | None = None,
        bandlimit: float | None = None,
        drop_kernel: float = 0.0,
        swap_channels: bool = False,
        deterministic: bool = False,
    ):
        super().__init__()
        self.name = type(self).__name__
        copies = channels if n_ssm is None else n_ssm
        check_options(
            self.name,
            sizes={"channels": channels, "state_size": state_size, "channels_out": channels_out},
            optional_sizes={"n_ssm": n_ssm, "l_max": l_max},
            numbers={"dt_min": dt_min, "dt_max": dt_max, "bandlimit": bandlimit},
            flags={
                **{"bidirectional": bidirectional, "dt_tie": dt_tie, "dt_fast": dt_fast},
                **{"swap_channels": swap_channels, "deterministic": deterministic},
            },
            transforms={"dt_transform": dt_transform, "real_transform": real_transform},
        )
        self._require(channels % copies == 0, f"n_ssm {copies} does not divide channels {channels}")
        self._require(dt_min <= dt_max, f"expected 0 < dt_min <= dt_max, got {dt_min}, {dt_max}")
        fits = isinstance(drop_kernel, int | float) and 0 <= drop_kernel < 1
        self._require(fits, f"drop_kernel is {drop_kernel!r}, expected a number in [0, 1)")
        self.channels, self.state_size, self.channels_out = channels, state_size, channels_out
        self.bidirectional, self.l_max, self.bandlimit = bidirectional, l_max, bandlimit
        self.copies, self.deterministic, self.swap_channels = copies, deterministic, swap_channels
        self.dt_transform, self.dt_fast, self.real_transform = dt_transform, dt_fast, real_transform
        self.drop_kernel = nn.Dropout(drop_kernel) if drop_kernel else None
        self._rates = learning_rates(self.name, lr)
        self.learning_rates: dict[str, float] = {}
        self._register("dt", self._draw_steps(dt_min, dt_max, dt_tie), "dt")
        draw = torch.ones if deterministic else torch.randn
        self.D = nn.Parameter(draw(channels_out, channels))

    def _require(self, holds: bool, problem: str) -> None:
        if not holds:
            raise UsageError(f"{self.name}: {problem}")

    def _register(self, name: str, value: Tensor, kind: str) -> None:
        """A parameter with the learning rate of its kind, or a buffer where that is 0. Complex ones are real pairs."""
        value = torch.view_as_real(value) if value.is_complex() else value
        value = value.detach().to(torch.get_default_device(), torch.get_default_dtype()).clone()
        rate = self._rates.get(kind)
        if rate == 0:
            self.register_buffer(name, value)
            return
        setattr(self, name, nn.Parameter(value))
        if rate is not None:
            self.learning_rates[name] = rate

    def _draw_steps(self, low: float, high: float, tie: bool) -> Tensor:
        shape = (self.channels,) if tie else (self.channels, self.modes)
        if self.deterministic:
            even = torch.linspace(0, 1, self.channels, dtype=torch.float64)
            share = even if tie else even.unsqueeze(-1).expand(shape)
        else:
            share = torch.rand(shape, dtype=torch.float64)
        step = torch.exp(math.log(low) + share * math.log(high / low))
        raw = TRANSFORMS[self.dt_transform][1](step)
        return torch.asinh(raw) if self.dt_fast else raw

    def _mixture(
        self, given: str | Sequence[str], several: Mapping[str, tuple[str, ...]]
    ) -> list[str]:
        """The names of the starts of all copies, which take them in turn."""
        names = tuple(several.get(given, (given,)) if isinstance(given, str) else given or ())
        known = len(names) > 0 and all(isinstance(name, str) for name in names)
        self._require(known, f"expected a name or names of starts, got {given!r}")
        self._require(
            self.copies >= len(names),
            f"n_ssm is {self.copies}, too few for the {len(names)} starts {', '.join(names)}",
        )
        return [names[i % len(names)] for i in range(self.copies)]

    def _register_system(self, Lambda: Tensor, B: Tensor) -> None:
        """A and B of every copy (n_ssm, m), and C drawn for every channel."""
        decay = (-Lambda.real).clamp(min=SMALLEST_DECAY)
        if self.real_transform == "sigmoid":
            self._require(bool((decay < 1).all()), "real_transform 'sigmoid' needs -Re A below 1")
        self._register("A_real", TRANSFORMS[self.real_transform][1](decay), "A")
        if Lambda.is_complex():
            self._register("A_imag", Lambda.imag, "A")
        self._register("B", B, "B")
        outputs = self.channels_out * (2 if self.bidirectional else 1)
        C = torch.randn(outputs, self.channels, self.modes, dtype=B.dtype)
        if self.deterministic:
            C = torch.zeros_like(C)
            C[..., 0] = 1
        self._register("C", C, "C")

    @property
    def depends_on_length(self) -> bool:
        """Whether the kernel of a longer input begins otherwise."""
        return False

    @property
    def modes(self) -> int:
        """m: eigenvalues that are stored, one of each conjugate pair."""
        return self.state_size // 2 if self.complex_state else self.state_size

    def step_sizes(self, rate: float = 1.0) -> Float[Tensor, "h"] | Float[Tensor, "h m"]:
        """dt of every channel at a sampling rate `rate` times slower than in training, float64.

        Float64 as A is, so that every device has the same: a last place of dt turns the phase of a fast mode, l steps
        on, by l dt Im A of it.
        """
        raw = torch.sinh(self.dt.double()) if self.dt_fast else self.dt.double()
        return TRANSFORMS[self.dt_transform][0](raw) * rate

    def eigenvalues(self) -> Tensor:
        """A (h m): the diagonal, for S4 without its low-rank part; complex128, or float64."""
        real = -TRANSFORMS[self.real_transform][0](self.A_real.double())
        return self._spread(
            torch.complex(real, self.A_imag.double()) if self.complex_state else real
        )

    def _spread(self, x: Tensor) -> Tensor:
        """(..., n_ssm, m) to (..., h, m): channel i uses copy i mod n_ssm."""
        return x.repeat(*[1] * (x.ndim - 2), self.channels // self.copies, 1)

    def _number(self, x: Tensor) -> Tensor:
        return torch.view_as_complex(_wide(x)) if self.complex_state else _wide(x)

    def _outputs(self, rate: float) -> Tensor:
        """C (c h m), with the modes above the band limit silent."""
        C = self._number(self.C)
        if self.bandlimit is None:
            return C
        dt = self.step_sizes(rate).reshape(self.channels, -1)
        frequency = dt * self.eigenvalues().imag.abs() / (2 * math.pi)
        return C * (frequency < self.bandlimit / 2)

    @abstractmethod
    def kernel(self, length: int, rate: float = 1.0) -> Float[Tensor, "c h l"]:
        """The convolution kernel, `length` taps of it; with `bidirectional`, those of the future behind the others."""

    @abstractmethod
    def _tables(self, steps: int, rate: float) -> Tables:
        """What the recurrence needs to take so many steps at once."""

    @abstractmethod
    def _stepper(self, rate: float) -> Step:
        """The discrete system, ready to take one step after another."""

    def initial_state(self, batch_size: int) -> Float[Tensor, "b h n"] | Float[Tensor, "b k h"]:
        """The state before the first step, zeros: float64 numbers, or the last inputs of a layer with `l_max`.

        It is float64 whatever the parameters are: a slow mode remembers thousands of steps, and adds up the rounding
        of each. A bidirectional layer has none and refuses.
        """
        if self.bidirectional:
            raise UsageError(
                f"{self.name}: a bidirectional layer reads its whole input at once and has no state"
            )
        whole = isinstance(batch_size, int) and batch_size >= 1
        self._require(whole, f"batch_size is {batch_size!r}, expected a whole number of at least 1")
        if self.l_max is not None:
            return self.D.new_zeros(batch_size, self.l_max - 1, self.channels)
        return self.D.new_zeros(batch_size, self.channels, self.state_size, dtype=torch.float64)

    def forward(
        self,
        u: Float[Tensor, "b l h"],
        state: Tensor | None = None,
        *,
        rate: float = 1.0,
        seq_idx: Any = None,
    ) -> tuple[Float[Tensor, "b l o"], Tensor | None]:
        """Run the layer over u. `seq_idx` is refused: a convolution cannot start anew in the middle."""
        self._check(u, state, rate, seq_idx)
        if state is not None and self.l_max is None:
            y, state = self._recur(u, state, rate)
        else:
            y, state = self._convolve(u, state, rate)
        y = y.view(*u.shape[:2], self.channels_out, self.channels)
        y = y + self.D.to(u.dtype) * u.unsqueeze(2)
        return (y.mT if self.swap_channels else y).flatten(2), state

    def _convolve(
        self, u: Tensor, state: Tensor | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        most = u.shape[1] if self.l_max is None else max(1, round(self.l_max / rate))
        K = self.kernel(most if state is not None else min(most, u.shape[1]), rate)
        if self.drop_kernel is not None:
            K = self.drop_kernel(K)
        past, future = K[: self.channels_out], K[self.channels_out :]
        if state is not None:
            if most != self.l_max:
                raise UsageError(
                    f"{self.name}: a state of {self.l_max} taps serves rate 1 only, got {rate}"
                )
            return long_convolution(u, past, state=state)
        y = long_convolution(u, past)
        if self.bidirectional:
            later = long_convolution(u.flip(1), future).flip(1)
            y = y + F.pad(later[:, 1:], (0, 0, 0, 1))
        return y, None

    def _recur(self, u: Tensor, state: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Blocks of steps: what a block reads of itself is a short convolution, what it reads of the past the state."""
        length = u.shape[1]
        if length < ONE_BY_ONE:
            step, outputs = self._stepper(rate), []
            for now in u.double().unbind(1):
                y, state = step(state, now)
                outputs.append(y)
            return torch.stack(outputs, dim=1).flatten(2).to(u.dtype), state
        steps = min(length, BLOCK)
        whole = length - length % steps
        y, state = self._run_blocks(u[:, :whole], state, steps, rate)
        if whole == length:
            return y, state
        rest, state = self._recur(u[:, whole:], state, rate)
        return torch.cat([y, rest], dim=1), state

    def _run_blocks(
        self, u: Tensor, state: Tensor, steps: int, rate: float
    ) -> tuple[Tensor, Tensor]:
        tables = self._tables(steps, rate)
        blocks = u.reshape(len(u), -1, steps, self.channels)  # (b k t h)
        own = long_convolution(blocks.flatten(0, 1), tables.kernel.to(_wide(u).dtype))
        before = []
        for written in torch.einsum("bkth,htn->kbhn", blocks.double(), tables.writein):
            before.append(state)
            state = tables.advance(state) + written
        read = torch.einsum("kbhn,chtn->bktch", torch.stack(before), tables.readout)
        return own.view(*u.shape[:2], -1) + read.flatten(3).flatten(1, 2).to(own.dtype), state

    def _check(self, u: Tensor, state: Tensor | None, rate: float, seq_idx: Any) -> None:
        if not isinstance(u, Tensor) or u.ndim != 3 or u.shape[-1] != self.channels or 0 in u.shape:
            raise UsageError(
                f"{self.name}: u {what_came(u)}, expected (batch, length, {self.channels})"
            )
        wide = torch.float64 if self.C.dtype == torch.float64 else torch.float32
        fits = u.dtype == wide or (
            wide == torch.float32 and u.dtype in (torch.bfloat16, torch.float16)
        )
        self._require(fits, f"u is {u.dtype}, and the layer's parameters are {self.C.dtype}")
        self._require(
            u.device == self.C.device, f"u is on {u.device}, the layer on {self.C.device}"
        )
        self._require(
            seq_idx is None, "seq_idx is not served: a convolution cannot start anew in the middle"
        )
        self._require(is_positive(rate), f"rate is {rate!r}, expected a positive number")
        if state is None:
            return
        expected = self.initial_state(u.shape[0])
        for what in ("shape", "dtype", "device"):
            want: Any = getattr(expected, what)
            got: Any = getattr(state, what, type(state).__name__)
            if want != got:
                got, want = (tuple(x) if isinstance(x, torch.Size) else x for x in (got, want))
                raise UsageError(f"{self.name}: state has the {what} {got}, expected {want}")
        if self.drop_kernel is not None and self.training:
            raise UsageError(
                f"{self.name}: drop_kernel in training has no recurrence: call eval(), or give no state"
            )


def _wide(x: Tensor) -> Tensor:
    """Complex numbers have no half precision: a layer cast to it computes its kernel in float32."""
    return x if x.dtype == torch.float64 else x.float()
