"""Causal self-attention with rotary positions: the Transformer's mixer, behind the call of every layer here.

Attention (Vaswani et al. 2017, arXiv:1706.03762), section 3.2; rotary positions (Su et al. 2021, arXiv:2104.09864), 3.2.
"""

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers.linear import Linear
from adder.layers.state import State, expect_parts


class Attention(nn.Module):
    """y, state = layer(u, state): (b, l, d_model) to the same, at any length, 1 included.

        q, k, v = in_proj(u), in heads; q and k rotated by their positions
        y[t] = out_proj(sum over s <= t of softmax_s(q[t] . k[s] / sqrt(p)) v[s])

    Args:
        d_model: width of the input and the output.
        n_heads: h; p = d_model / h channels each, an even number.
        bias: biases on in_proj and out_proj.
        rope_base: the longest wavelength of the rotary positions, over 2 pi.

    The state is the key-value cache, which grows with the text: {"k": (b, t, h, p), "v": the same, "first": (b,)};
    "first" is how many of the oldest keys a row no longer, or never, reads. It comes back exactly when one was given:
    `layer.initial_state(batch_size)`.

    Example:
        >>> layer = Attention(8, n_heads=2)
        >>> u = torch.randn(2, 5, 8)
        >>> whole, _ = layer(u)
        >>> first, state = layer(u[:, :3], layer.initial_state(2))
        >>> second, state = layer(u[:, 3:], state)
        >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-6), state["k"].shape
        (True, torch.Size([2, 5, 2, 4]))
    """

    def __init__(
        self, d_model: int, n_heads: int, *, bias: bool = False, rope_base: float = 10000.0
    ):
        super().__init__()
        if min(d_model, n_heads) < 1 or d_model % n_heads or d_model // n_heads % 2:
            raise UsageError(
                f"Attention: n_heads {n_heads} must divide d_model {d_model} into heads of an even width"
            )
        if not rope_base > 1:
            raise UsageError(f"Attention: rope_base {rope_base} must be above 1")
        self.n_heads, self.rope_base = n_heads, rope_base
        self.in_proj = Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = Linear(d_model, d_model, bias=bias)

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token: an empty cache."""
        weight, d = self.in_proj.weight, self.in_proj.in_features
        empty = weight.new_zeros(batch_size, 0, self.n_heads, d // self.n_heads)
        first = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        return {"k": empty, "v": empty.clone(), "first": first}

    def forward(
        self,
        u: Float[Tensor, "b l d"],
        state: State | None = None,
        *,
        seq_idx: Int32[Tensor, "b l"] | None = None,
        padding: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], State | None]:
        """Run the layer over u.

        `seq_idx` keeps packed sequences apart; a state belongs to the first of each row, the returned one to the last.
        The first `padding` steps of a row are no input, and what comes out of them means nothing.

        Raises:
            UsageError: padding comes after tokens that are in the state: positions would have a gap there.
        """
        given = None if state is None else expect_parts("Attention", state, "k", "v", "first")
        q, k, v = self.in_proj(u).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        before = 0 if given is None else given["k"].shape[1]
        first = torch.zeros(len(u), dtype=torch.int64, device=u.device)
        if given is not None:
            first = given["first"]
        if padding is not None:
            if not torch.compiler.is_compiling() and bool(((padding > 0) & (first < before)).any()):
                raise UsageError(
                    "Attention: padding in front of a row takes a state without tokens alone: feed rows without "
                    "padding, or from their beginning"
                )
            first = torch.where(first == before, first + padding, first)
        positions = torch.arange(before, before + u.shape[1], device=u.device)
        q, k = _rotated(q, positions, self.rope_base), _rotated(k, positions, self.rope_base)
        if given is not None:
            k = torch.cat([given["k"].to(k.dtype), k], 1)
            v = torch.cat([given["v"].to(v.dtype), v], 1)
        plain = seq_idx is None and padding is None and given is None
        mask = None if plain else _readable(first, before, u.shape[1], seq_idx)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=plain
        )
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if given is None:
            return y, None
        if (
            seq_idx is not None
        ):  # what the last sequence of a row does not read, nothing after it does
            start = before + (seq_idx != seq_idx[:, -1:]).sum(1)
            first = torch.where(start > before, start, first)
        kept = given["k"].dtype
        return y, {"k": k.to(kept), "v": v.to(kept), "first": first}


def _readable(first: Tensor, before: int, length: int, seq_idx: Tensor | None) -> Tensor:
    """Return which keys each step reads: (b 1 l t+l)."""
    key = torch.arange(before + length, device=first.device)
    step = key[before:, None]
    mask = (key <= step) & (key >= first[:, None, None])
    if seq_idx is not None:
        # The keys of the state are of the row's first sequence.
        sequence = F.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1), (before + 1, 0))
        mask = mask & (sequence[:, None, :] == sequence[:, before:, None])
    # A step of the padding reads itself: a softmax over nothing would be NaN.
    return (mask | (key == step)).unsqueeze(1)


def _rotated(x: Float[Tensor, "b l h p"], positions: Tensor, base: float) -> Tensor:
    """Rotate each pair of channels (i, i + p/2) by position / base^(2 i / p), in float32 at least."""
    half = x.shape[-1] // 2
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    # Angles in float64: at position 10^6 float32 has lost their digits.
    i = torch.arange(half, device=x.device, dtype=torch.float64)
    angle = positions[:, None].double() * base ** (-i / half)
    cos, sin = (each.to(wide)[:, None] for each in (angle.cos(), angle.sin()))
    one, other = x.to(wide).chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1).to(x.dtype)
