"""What stands around a linear state space layer in a network: a nonlinearity and a mixture of channels.

S4 (arXiv:2111.00396), section 3.4: each channel is a system of its own, so a position-wise map mixes them.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers.dropout import Dropout
from adder.layers.linear_ssm import LinearSSM
from adder.layers.linear_ssm_options import what_came

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "none": lambda x: x,
}


class S4Block(nn.Module):
    """y, state = block(u, state): (b, l, d_model) to the same, around an S4 or S4D layer.

        y = GLU(W dropout(act(layer(u))))            with gate: the product of this and act(W_gate u)

    Args:
        layer: an S4 or S4D.
        d_model: the width outside; None for layer.channels. Where they differ, a linear map (the bottleneck) leads in.
        activation: "gelu", "silu", "relu" or "none".
        dropout: behind the activation; tie_dropout drops a channel for all steps of a sequence at once.
        glu: the last map has two halves, one the gate of the other (Dauphin et al. 2017, arXiv:1612.08083).
        gate: multiply by an activation of the input, as in a gated attention unit.

    The state is the layer's own.

    Example:
        >>> from adder.layers import S4D
        >>> block = S4Block(S4D(4, 8), d_model=6, dropout=0.1)
        >>> block(torch.randn(2, 10, 6))[0].shape
        torch.Size([2, 10, 6])
    """

    def __init__(
        self,
        layer: LinearSSM,
        d_model: int | None = None,
        *,
        activation: str = "gelu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        glu: bool = True,
        gate: bool = False,
    ):
        super().__init__()
        if not isinstance(layer, LinearSSM):
            raise UsageError(f"S4Block: layer is a {type(layer).__name__}, expected an S4 or S4D")
        if activation not in ACTIVATIONS:
            raise UsageError(
                f"S4Block: activation {activation!r} is not one of {', '.join(ACTIVATIONS)}"
            )
        if not 0 <= dropout < 1:
            raise UsageError(f"S4Block: dropout {dropout} must be in [0, 1)")
        width = layer.channels if d_model is None else d_model
        if width < 1:
            raise UsageError(f"S4Block: d_model {width} must be at least 1")
        self.layer, self.activation, self.glu, self.d_model = layer, activation, glu, width
        self.dropout = Dropout(dropout, tie_dropout)
        self.input_linear = None if width == layer.channels else nn.Linear(width, layer.channels)
        self.output_linear = nn.Linear(
            layer.channels * layer.channels_out, width * (2 if glu else 1)
        )
        self.gate = nn.Linear(width, width) if gate else None

    def initial_state(self, batch_size: int) -> Tensor:
        """The layer's: see `LinearSSM.initial_state`."""
        return self.layer.initial_state(batch_size)

    def forward(
        self,
        u: Float[Tensor, "b l d"],
        state: Tensor | None = None,
        *,
        lengths: Int[Tensor, " b"] | None = None,
        rate: float = 1.0,
        seq_idx: Int32[Tensor, "b l"] | None = None,
        padding: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Tensor | None]:
        """Run the block. Steps from `lengths` on are padding: they read as zeros, so a bidirectional layer is exact.

        Not with a state: where padding has come in, what the state holds is no longer the end of the sequence. Packed
        sequences (`seq_idx`) and `padding` in front of a row are refused: a convolution runs over where they meet.
        """
        for name, value in (("seq_idx", seq_idx), ("padding", padding)):
            if value is not None:
                raise UsageError(f"S4Block: {name} is not honoured: run the sequences one by one")
        if not isinstance(u, Tensor) or u.ndim != 3 or u.shape[-1] != self.d_model:
            raise UsageError(f"S4Block: u {what_came(u)}, expected (batch, length, {self.d_model})")
        if lengths is not None:
            self._check_lengths(lengths, u, state)
        x = u if self.input_linear is None else self.input_linear(u)
        if lengths is not None:
            steps = torch.arange(u.shape[1], device=u.device)
            x = x.masked_fill((steps >= lengths.unsqueeze(1)).unsqueeze(-1), 0)
        y, state = self.layer(x, state, rate=rate)
        y = self.output_linear(self.dropout(ACTIVATIONS[self.activation](y)))
        if self.glu:
            y = F.glu(y, dim=-1)
        if self.gate is not None:
            y = y * ACTIVATIONS[self.activation](self.gate(u))
        return y, state

    def _check_lengths(self, lengths: Tensor, u: Tensor, state: Tensor | None) -> None:
        if state is not None:
            raise UsageError(
                "S4Block: lengths and a state cannot be given together: cut the padding off"
            )
        if self.layer.depends_on_length:
            raise UsageError(
                "S4Block: lengths with method 'dss' are not served: its kernel is normalised over the padding too"
            )
        fits = isinstance(lengths, Tensor) and lengths.shape == u.shape[:1]
        if not fits or lengths.is_floating_point() or lengths.dtype == torch.bool:
            held = (
                f"{tuple(lengths.shape)} {lengths.dtype}"
                if isinstance(lengths, Tensor)
                else type(lengths).__name__
            )
            raise UsageError(f"S4Block: lengths is {held}, expected ({len(u)},) whole numbers")
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(each) for each in torch.aminmax(lengths))
            if low < 1 or high > u.shape[1]:
                raise UsageError(
                    f"S4Block: lengths holds {low if low < 1 else high}, expected 1 to {u.shape[1]}"
                )
