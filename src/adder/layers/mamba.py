"""The Mamba block: projection, short convolution, selective scan and gate. Parameter names are mamba_ssm's.

Mamba (Gu & Dao 2023, arXiv:2312.00752), section 3.4 and figure 3.
"""

from typing import Literal

from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from adder.errors import UsageError
from adder.layers.convolution import convolve
from adder.layers.linear import Linear
from adder.layers.selective import ScanInputs, SelectiveCore, default_dt_rank
from adder.layers.state import State, expect_parts


class _Branch(SelectiveCore):
    """Short convolution, then S6: what one direction of a block runs between its two projections."""

    def __init__(
        self,
        channels: int,
        state_size: int,
        dt_rank: int,
        width: int,
        conv_bias: bool,
        dt_min: float,
        dt_max: float,
        dt_init_floor: float,
        mixer_norm_eps: float | None,
    ):
        super().__init__(
            channels, state_size, dt_rank, dt_min=dt_min, dt_max=dt_max, dt_init_floor=dt_init_floor
        )
        if width < 1:
            raise UsageError(f"Mamba: d_conv {width} must be at least 1")
        self.mixer_norm_eps = mixer_norm_eps
        self.conv1d = nn.Conv1d(channels, channels, width, groups=channels, bias=conv_bias)

    def convolve_and_scan(
        self,
        x: Float[Tensor, "b l d"],
        z: Float[Tensor, "b l d"],
        state: dict[str, Tensor] | None,
        seq_idx: Int32[Tensor, "b l"] | None,
        padding: Int[Tensor, " b"] | None,
    ) -> tuple[Float[Tensor, "b l d"], dict[str, Tensor]]:
        """Return the gated output, and the states of both the convolution and the scan."""
        conv, ssm = (None, None) if state is None else (state["conv"], state["ssm"])
        x, conv = convolve(self.conv1d, x, conv, seq_idx, padding)
        y, ssm = self.scan(x, z, ssm, seq_idx, padding)
        return y, {"conv": conv, "ssm": ssm}


class Mamba(_Branch):
    """y, state = layer(u, state): (b, l, d_model) to the same, at any length, 1 included.

        x, z = in_proj(u)
        x = silu(short_convolution(x));  dt, B, C = x_proj(x)
        y = out_proj(selective_scan(x, dt, A, B, C, D) * silu(z))

    Args:
        d_model: width of the input and the output.
        d_state: n, numbers kept per inner channel.
        d_conv: width of the short convolution.
        expand: inner channels per outer one.
        dt_rank: rank of the map to the step size; "auto" means ceil(d_model / 16).
        d_inner: inner channels, where they are not expand * d_model.
        mixer_norm_eps: where given, the step size of low rank, B and C are each normalised with this eps and without
            weights, as FalconMamba does (arXiv:2410.05355).
        dt_min, dt_max: the initial step sizes are log-uniform between them, and at least dt_init_floor.
        bias: biases on in_proj and out_proj; conv_bias: on the convolution.
        bidirectional: a second branch, `reverse`, with parameters of its own, reads the sequence from its
            end; the two are added before out_proj, as in Vision Mamba (arXiv:2401.09417). Such a layer sees
            the future: it has no state.

    The state is {"conv": (b, d_conv - 1, inner), "ssm": (b, inner, d_state)}; it comes back exactly when one
    was given: `layer.initial_state(batch_size)`. Both keep the types they came in.

    Example:
        >>> layer = Mamba(8)
        >>> u = torch.randn(2, 5, 8)
        >>> whole, _ = layer(u)
        >>> first, state = layer(u[:, :3], layer.initial_state(2))
        >>> second, state = layer(u[:, 3:], state)
        >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-6)
        True
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bidirectional: bool = False,
        *,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
        d_inner: int | None = None,
        mixer_norm_eps: float | None = None,
    ):
        if min(d_model, expand) < 1:
            raise UsageError(f"Mamba: d_model {d_model} and expand {expand} must be at least 1")
        inner = expand * d_model if d_inner is None else d_inner
        rank = default_dt_rank(d_model) if dt_rank == "auto" else dt_rank
        sizes = (inner, d_state, rank, d_conv, conv_bias, dt_min, dt_max, dt_init_floor)
        super().__init__(*sizes, mixer_norm_eps)
        self.in_proj = Linear(d_model, 2 * inner, bias=bias)
        self.out_proj = Linear(inner, d_model, bias=bias)
        self.reverse = _Branch(*sizes, mixer_norm_eps) if bidirectional else None

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token. A bidirectional layer has none and refuses."""
        if self.reverse is not None:
            raise UsageError(
                "Mamba: a bidirectional layer reads its whole input at once and has no state"
            )
        inner, width = self.conv1d.weight.shape[0], self.conv1d.weight.shape[2]
        return {
            "conv": self.conv1d.weight.new_zeros(batch_size, width - 1, inner),
            "ssm": self.initial_ssm_state(batch_size),
        }

    def scan_inputs(self, u: Float[Tensor, "b l d"]) -> ScanInputs:
        """Return what the scan is made of as the block reads u from its beginning. A bidirectional layer refuses."""
        if self.reverse is not None:
            raise UsageError("Mamba: a bidirectional layer has two scans, expected a layer of one")
        x, _ = self.in_proj(u).chunk(2, dim=-1)
        return self.select(convolve(self.conv1d, x, None, None, None)[0])

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
        if padding is not None and self.reverse is not None:
            raise UsageError("Mamba: a bidirectional layer takes no padding")
        if state is not None and self.reverse is not None:
            raise UsageError(
                "Mamba: a bidirectional layer reads its whole input at once and takes no state"
            )
        given = None if state is None else expect_parts("Mamba", state, "conv", "ssm")
        x, z = self.in_proj(u).chunk(2, dim=-1)
        y, last = self.convolve_and_scan(x, z, given, seq_idx, padding)
        if self.reverse is not None:
            flipped = None if seq_idx is None else seq_idx[:, -1:] - seq_idx.flip(1)
            back, _ = self.reverse.convolve_and_scan(x.flip(1), z.flip(1), None, flipped, None)
            y = y + back.flip(1)
        return self.out_proj(y), None if state is None else last  # type: ignore[return-value]
