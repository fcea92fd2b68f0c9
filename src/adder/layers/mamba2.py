"""The Mamba-2 block: projection, short convolution, state space duality, gated norm. Parameter names are mamba_ssm's.

Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), section 7.1 and figure 6.
"""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from adder.errors import UsageError
from adder.layers.convolution import NO_STEP, convolve, padded
from adder.layers.linear import Linear
from adder.layers.norm import GatedRMSNorm
from adder.layers.selective import ScanInputs, positive_steps, step_size_bias
from adder.layers.state import State, expect_parts
from adder.ops import state_space_dual
from adder.ops.dtypes import arithmetic


class Mamba2(nn.Module):
    """y, state = layer(u, state): (b, l, d_model) to the same, at any length, 1 included.

        z, x B C, dt = in_proj(u)
        x, B, C = silu(short_convolution(x B C))
        y = out_proj(norm(state_space_dual(x, dt, A, B, C, D), z))

    Args:
        d_model: width of the input and the output.
        d_state: n, numbers kept per inner channel.
        d_conv: width of the short convolution, which runs over x, B and C.
        expand: inner channels per outer one.
        headdim: p, inner channels of a head; it divides expand * d_model.
        ngroups: g, groups of heads that share B and C, and are normalised on their own.
        chunk_size: steps that are multiplied at once; it changes no number beyond its rounding.
        D_has_hdim: a skip connection for each channel, not for each head.
        rmsnorm: the gated norm behind the scan; without it y * silu(z) alone.
        norm_before_gate: norm(y) * silu(z) in place of norm(y * silu(z)).
        A_init_range: -A is drawn uniformly from it.
        dt_min, dt_max: the initial step sizes are log-uniform between them, and at least dt_init_floor.
        dt_limit: the least and the largest step size, at every length alike.
        bias: biases on in_proj and out_proj; conv_bias: on the convolution.
        norm_eps: added to the mean square in the norm.
        d_inner: inner channels, where they are not expand * d_model.

    The state is {"conv": (b, d_conv - 1, inner + 2 g n), "ssm": (b, h, p, n)}; it comes back exactly when one was
    given: `layer.initial_state(batch_size)`. Both keep the types they came in.

    Example:
        >>> layer = Mamba2(8, d_state=16, headdim=4)
        >>> u = torch.randn(2, 5, 8)
        >>> whole, _ = layer(u)
        >>> first, state = layer(u[:, :3], layer.initial_state(2))
        >>> second, state = layer(u[:, 3:], state)
        >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-5)
        True
    """

    no_weight_decay: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        chunk_size: int = 256,
        *,
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
        d_inner: int | None = None,
    ):
        super().__init__()
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        sizes |= {"headdim": headdim, "ngroups": ngroups, "chunk_size": chunk_size}
        for name, size in sizes.items():
            if size < 1:
                raise UsageError(f"Mamba2: {name} {size} must be at least 1")
        inner = expand * d_model if d_inner is None else d_inner
        if inner < 1 or inner % headdim or (inner // headdim) % ngroups:
            raise UsageError(
                f"Mamba2: headdim {headdim} must divide the {inner} inner channels, and ngroups {ngroups} "
                "the number of heads"
            )
        _expect_range("dt_min, dt_max", (dt_min, dt_max), positive=True)
        _expect_range("A_init_range", A_init_range, positive=True)
        _expect_range("dt_limit", dt_limit, positive=False)
        heads, shared = inner // headdim, ngroups * d_state
        self.headdim, self.ngroups, self.d_state = headdim, ngroups, d_state
        self.chunk_size, self.dt_limit = chunk_size, (float(dt_limit[0]), float(dt_limit[1]))
        self.split = (inner, inner + 2 * shared, heads)
        self.in_proj = Linear(d_model, sum(self.split), bias=bias)
        width = self.split[1]
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, bias=conv_bias)
        self.dt_bias = nn.Parameter(step_size_bias(heads, dt_min, dt_max, dt_init_floor))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*A_init_range).log())
        self.D = nn.Parameter(torch.ones(inner if D_has_hdim else heads))
        self.norm = (
            GatedRMSNorm(inner, norm_eps, inner // ngroups, norm_before_gate) if rmsnorm else None
        )
        self.out_proj = Linear(inner, d_model, bias=bias)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token."""
        channels, _, width = self.conv1d.weight.shape
        shape = (batch_size, self.A_log.shape[0], self.headdim, self.d_state)
        return {
            "conv": self.conv1d.weight.new_zeros(batch_size, width - 1, channels),
            "ssm": self.A_log.new_zeros(shape, dtype=arithmetic(self.A_log.dtype)),
        }

    def _parts(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x (b l h p), A (h), B and C (b l g n), and D (h) or (h p), of the convolution's output."""
        shared = self.ngroups * self.d_state
        x, B, C = torch.split(mixed, [self.split[0], shared, shared], dim=-1)
        heads, groups = (-1, self.headdim), (self.ngroups, self.d_state)
        return (
            torch.unflatten(x, -1, heads),
            -torch.exp(self.A_log.to(arithmetic(x.dtype))),
            torch.unflatten(B, -1, groups),
            torch.unflatten(C, -1, groups),
            self.D if self.D.shape == self.A_log.shape else torch.unflatten(self.D, 0, heads),
        )

    def scan_inputs(self, u: Float[Tensor, "b l d"]) -> ScanInputs:
        """Return what the scan is made of as the block reads u from its beginning."""
        _, mixed, dt = self.in_proj(u).split(self.split, dim=-1)
        x, A, B, C, D = self._parts(convolve(self.conv1d, mixed, None, None, None)[0])
        real, steps = arithmetic(x.dtype), positive_steps(dt, self.dt_bias)
        steps = steps.clamp(*self.dt_limit)
        return ScanInputs(x.to(real), steps, A, B.to(real), C.to(real), D.to(real))

    def forward(
        self,
        u: Float[Tensor, "b l d"],
        state: State | None = None,
        *,
        seq_idx: Int32[Tensor, "b l"] | None = None,
        padding: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], State | None]:
        """Run the block over u.

        `seq_idx` keeps packed sequences apart, in the convolution and in the scan. The first `padding` steps of a row
        are no input: they leave the state as it is, and what comes out of them means nothing.
        """
        given = None if state is None else expect_parts("Mamba2", state, "conv", "ssm")
        z, mixed, dt = self.in_proj(u).split(self.split, dim=-1)
        conv, ssm = (None, None) if given is None else (given["conv"], given["ssm"])
        mixed, conv = convolve(self.conv1d, mixed, conv, seq_idx, padding)
        if padding is not None and ssm is not None:
            dt = self._without_steps(dt, padding, ssm)
        x, A, B, C, D = self._parts(mixed)
        y, ssm = state_space_dual(
            x,
            dt,
            A,
            B,
            C,
            D,
            z=torch.unflatten(z, -1, (-1, self.headdim)) if self.norm is None else None,
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            chunk_size=self.chunk_size,
            state=ssm,
            seq_idx=seq_idx,
        )
        y = y.flatten(2)
        y = self.out_proj(y if self.norm is None else self.norm(y, z))
        return y, None if given is None else {"conv": conv, "ssm": ssm}

    def _without_steps(self, dt: Tensor, padding: Tensor, ssm: Tensor) -> Tensor:
        """Make the steps of the padding zero, so that they leave the state as it is."""
        if self.dt_limit[0] > 0 and bool((ssm != 0).any()):
            raise UsageError(
                f"Mamba2: with dt_limit {self.dt_limit} every step changes the state, so padding in front of a row "
                "takes no state: feed rows without padding, or from their beginning"
            )
        return dt.masked_fill(padded(padding, dt.shape[1]), NO_STEP)


def _expect_range(name: str, limits: tuple[float, float], *, positive: bool) -> None:
    low, high = limits
    if not (low > 0 if positive else low >= 0) or not low <= high:
        expected = "0 < least <= largest" if positive else "0 <= least <= largest"
        raise UsageError(f"Mamba2: {name} is {low}, {high}, expected {expected}")
