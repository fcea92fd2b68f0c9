"""S6, the selective state space model: B, C and the step size are functions of the input.

Mamba (Gu & Dao 2023, arXiv:2312.00752), sections 3.2 (algorithm 2) and 3.6 (initialisation).
"""

import math
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers.convolution import NO_STEP, padded
from adder.layers.linear import Linear
from adder.layers.quantized import unbiased
from adder.ops import rms_norm, selective_scan
from adder.ops.dtypes import arithmetic

# Above it softplus(x) = x to the last bit of a double, as in the operators.
_EXACT = 50.0


class ScanInputs(NamedTuple):
    """What enters the scan of a block, in the type that it computes in. `steps` are Delta, behind bias and softplus.

    Of Mamba-2, d = (h p) channels lie in heads, which share a step, and groups of heads share B and C.
    """

    u: Float[Tensor, "b l d"] | Float[Tensor, "b l h p"]
    steps: Float[Tensor, "b l d"] | Float[Tensor, "b l h"]
    A: Float[Tensor, "d n"] | Float[Tensor, " h"]
    B: Float[Tensor, "b l n"] | Float[Tensor, "b l g n"]
    C: Float[Tensor, "b l n"] | Float[Tensor, "b l g n"]
    D: Float[Tensor, " d"] | Float[Tensor, " h"] | Float[Tensor, "h p"]


def positive_steps(dt: Tensor, bias: Tensor | None) -> Tensor:
    """Return Delta = softplus(dt + bias), in the type of the scan."""
    real = arithmetic(dt.dtype)
    wide = dt.to(real) if bias is None else dt.to(real) + bias.to(real)
    return F.softplus(wide, threshold=_EXACT)


class SelectiveCore(nn.Module):
    """The parameters of S6 and the one call that uses them. Abstract: a layer adds what lies around it.

    x_proj  x -> (step size of low rank, B, C)
    dt_proj step size of low rank -> step size of every channel, before softplus
    A_log   log(-A), so that A stays negative under any gradient step
    D       the skip connection

    mixer_norm_eps: where given, what x_proj makes is normalised in its three parts, without weights.
    """

    mixer_norm_eps: float | None = None

    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "D")

    def __init__(
        self,
        channels: int,
        state_size: int,
        dt_rank: int,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
    ):
        super().__init__()
        if min(channels, state_size, dt_rank) < 1:
            raise UsageError(
                f"selective layer: channels {channels}, state_size {state_size} and dt_rank {dt_rank} "
                "must be at least 1"
            )
        if not 0 < dt_min <= dt_max:
            raise UsageError(
                f"selective layer: expected 0 < dt_min <= dt_max, got {dt_min} and {dt_max}"
            )
        self.split = (dt_rank, state_size, state_size)
        self.x_proj = Linear(channels, sum(self.split), bias=False)
        self.dt_proj = Linear(dt_rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self._reset_step_size(dt_min, dt_max, dt_init_floor)

    @torch.no_grad()
    def _reset_step_size(self, dt_min: float, dt_max: float, floor: float) -> None:
        """Draw dt_proj's bias so that softplus(bias) is log-uniform in [dt_min, dt_max]."""
        bound = self.dt_proj.in_features**-0.5
        self.dt_proj.weight.uniform_(-bound, bound)
        self.dt_proj.bias.copy_(step_size_bias(len(self.dt_proj.bias), dt_min, dt_max, floor))

    def scan(
        self,
        x: Float[Tensor, "b l d"],
        z: Float[Tensor, "b l d"] | None,
        state: Float[Tensor, "b d n"] | None,
        seq_idx: Int32[Tensor, "b l"] | None,
        padding: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d n"]]:
        """Select dt, B and C from x, and run the scan, gated by z where it is given.

        The first `padding` steps of a row leave the state as it is; x must be zero there.
        """
        delta, bias, B, C = self._select(x)
        if padding is not None and state is not None:
            delta = delta.masked_fill(padded(padding, x.shape[1]), NO_STEP)
        return selective_scan(
            x,
            delta,
            -torch.exp(self.A_log.to(arithmetic(x.dtype))),
            B,
            C,
            self.D,
            z=z,
            delta_bias=bias,
            delta_softplus=True,
            state=state,
            seq_idx=seq_idx,
        )

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return dt (b l d) before bias and softplus, its bias (d), B and C (b l n)."""
        dt, B, C = self.x_proj(x).split(self.split, dim=-1)
        if self.mixer_norm_eps is not None:
            dt, B, C = (_normalised(each, self.mixer_norm_eps) for each in (dt, B, C))
        delta, bias = unbiased(self.dt_proj, dt)  # the scan adds the bias, in its own arithmetic
        return delta.to(x.dtype), bias, B.to(x.dtype), C.to(x.dtype)

    def select(self, x: Float[Tensor, "b l d"]) -> ScanInputs:
        """Return what the scan over x is made of, from a state of zeros."""
        real = arithmetic(x.dtype)
        delta, bias, B, C = self._select(x)
        A = -torch.exp(self.A_log.to(real))
        steps = positive_steps(delta, bias)
        return ScanInputs(x.to(real), steps, A, B.to(real), C.to(real), self.D.to(real))

    def initial_ssm_state(self, batch_size: int) -> Float[Tensor, "b d n"]:
        """Return h[-1] = 0, in the type the scan accumulates in."""
        dtype = arithmetic(self.A_log.dtype)
        return self.A_log.new_zeros(batch_size, *self.A_log.shape, dtype=dtype)


class SelectiveSSM(SelectiveCore):
    """S6 alone: y, state = layer(u, state), (b, l, channels) to the same, at any length.

        dt, B, C = x_proj(u);  dt = softplus(dt_proj(dt))
        h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] u[t];  y[t] = C[t] . h[t] + D u[t]

    Args:
        channels: d, the width of the input and the output.
        state_size: n, numbers kept per channel.
        dt_rank: rank of the map from input to step size; None means ceil(channels / 16), as in Mamba.

    The state is h, (b, d, n). It comes back exactly when one was given: `layer.initial_state(batch_size)`.

    Example:
        >>> layer = SelectiveSSM(8, state_size=4)
        >>> u = torch.randn(2, 5, 8)
        >>> y, state = layer(u, layer.initial_state(2))
        >>> y.shape, state.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8, 4]))
        >>> layer(u)[1] is None
        True
    """

    def __init__(self, channels: int, state_size: int = 16, dt_rank: int | None = None):
        super().__init__(
            channels, state_size, default_dt_rank(channels) if dt_rank is None else dt_rank
        )

    def initial_state(self, batch_size: int) -> Float[Tensor, "b d n"]:
        """Return the state before the first token."""
        return self.initial_ssm_state(batch_size)

    def forward(
        self,
        u: Float[Tensor, "b l d"],
        state: Float[Tensor, "b d n"] | None = None,
        *,
        seq_idx: Int32[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d n"] | None]:
        """Run the layer over u. `seq_idx` restarts the state where packed sequences meet."""
        y, last = self.scan(u, None, state, seq_idx)
        return y, None if state is None else last


def _normalised(x: Tensor, eps: float) -> Tensor:
    return rms_norm(x, x.new_ones(x.shape[-1], dtype=arithmetic(x.dtype)), eps=eps)


def step_size_bias(count: int, dt_min: float, dt_max: float, floor: float) -> Float[Tensor, " d"]:
    """Draw biases b so that softplus(b) is log-uniform in [dt_min, dt_max], and at least `floor`."""
    dt = torch.empty(count).uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


def default_dt_rank(width: int) -> int:
    """Return Mamba's "auto": one sixteenth of the width, rounded up."""
    return math.ceil(width / 16)
