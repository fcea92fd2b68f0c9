"""LSTM and GRU, PyTorch's own, behind the call of every layer here.

LSTM (Hochreiter & Schmidhuber 1997); GRU (Cho et al. 2014, arXiv:1406.1078).
"""

from typing import Literal

from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from adder.errors import UsageError
from adder.layers.linear import Linear
from adder.layers.state import State, expect_parts

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """y, state = layer(u, state): (b, l, d_model) to the same, at any length, 1 included: y = out_proj(cell(u)).

    Args:
        d_model: width of the input and the output.
        cell: "lstm" or "gru".
        hidden_size: channels of the cell; None means d_model.
        bias: a bias on out_proj; the cells have theirs as PyTorch has them.

    The state is {"h": (b, hidden)}, of an LSTM {"h": (b, hidden), "c": (b, hidden)}; it comes back exactly when one was
    given: `layer.initial_state(batch_size)`. Packed sequences and padding are refused: PyTorch's cells know neither.

    Example:
        >>> import torch
        >>> layer = Recurrent(8, "gru")
        >>> y, state = layer(torch.randn(2, 5, 8), layer.initial_state(2))
        >>> y.shape, state["h"].shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        d_model: int,
        cell: Literal["lstm", "gru"],
        hidden_size: int | None = None,
        *,
        bias: bool = False,
    ):
        super().__init__()
        if cell not in _CELLS:
            raise UsageError(f"Recurrent: cell is {cell!r}, expected {' or '.join(_CELLS)}")
        hidden = d_model if hidden_size is None else hidden_size
        if min(d_model, hidden) < 1:
            raise UsageError(
                f"Recurrent: d_model {d_model} and hidden_size {hidden} must be at least 1"
            )
        self.parts = ("h", "c") if cell == "lstm" else ("h",)
        self.cell = _CELLS[cell](d_model, hidden, batch_first=True)
        self.out_proj = Linear(hidden, d_model, bias=bias)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token: zeros."""
        weight = self.out_proj.weight
        return {name: weight.new_zeros(batch_size, weight.shape[1]) for name in self.parts}

    def forward(
        self,
        u: Float[Tensor, "b l d"],
        state: State | None = None,
        *,
        seq_idx: Int32[Tensor, "b l"] | None = None,
        padding: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], State | None]:
        """Run the layer over u.

        Raises:
            UsageError: with seq_idx or padding.
        """
        for name, value in (("seq_idx", seq_idx), ("padding", padding)):
            if value is not None:
                raise UsageError(
                    f"Recurrent: {name} is not honoured by PyTorch's cells: run the sequences one by one"
                )
        if state is None:
            return self.out_proj(self.cell(u)[0]), None
        given = expect_parts("Recurrent", state, *self.parts)
        before = tuple(given[name].to(u.dtype).unsqueeze(0) for name in self.parts)
        y, after = self.cell(u, before if len(before) > 1 else before[0])
        after = after if isinstance(after, tuple) else (after,)
        kept = {
            name: each.squeeze(0).to(given[name].dtype)
            for name, each in zip(self.parts, after, strict=True)
        }
        return self.out_proj(y), kept
