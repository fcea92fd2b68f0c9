"""Projections and an embedding whose weights are int8 or int4. They are read, not trained."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adder.errors import UsageError
from adder.layers.linear import Linear, is_bare, is_untouched
from adder.ops import linear
from adder.ops.quantized_linear import QuantizedWeight, quantize
from adder.ops.quantized_linear.interface import call
from adder.ops.quantized_linear.weight import SCHEMES, Scheme, zeros


class _Quantized(nn.Module):
    """A matrix (rows, columns) as two buffers: `weight`, uint8 codes, and `scales`, bfloat16. New ones are zeros."""

    weight: Tensor
    scales: Tensor

    def __init__(self, rows: int, columns: int, scheme: Scheme):
        super().__init__()
        if scheme not in SCHEMES:
            raise UsageError(f"{self._name}: scheme is {scheme!r}, expected {' or '.join(SCHEMES)}")
        if min(rows, columns) < 1:
            raise UsageError(f"{self._name}: rows {rows} and columns {columns} must be at least 1")
        self.rows, self.columns, self.scheme = rows, columns, scheme
        new = zeros(rows, columns, scheme)
        self.register_buffer("weight", new.codes)
        self.register_buffer("scales", new.scales)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def quantized(self) -> QuantizedWeight:
        """The matrix, which shares the buffers' memory."""
        return QuantizedWeight(self.weight, self.scales, self.rows, self.columns, self.scheme)

    def hold(self, quantized: QuantizedWeight) -> None:
        """Take a matrix of this size and scheme, without a copy.

        Raises:
            UsageError: it is of another.
        """
        if (quantized.shape, quantized.scheme) != ((self.rows, self.columns), self.scheme):
            raise UsageError(
                f"{self._name}: the weight is {quantized.shape} in {quantized.scheme}, "
                f"expected {(self.rows, self.columns)} in {self.scheme}"
            )
        self.weight, self.scales = quantized.codes, quantized.scales

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Quantized":
        """Move the codes and scales with the module, and keep their types: .half() or .double() rounds neither."""
        kept = {name: getattr(self, name) for name in ("weight", "scales")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            if getattr(self, name).dtype != before.dtype:
                setattr(self, name, before.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        """The size and the scheme, in print(model)."""
        return f"{self.columns}, {self.rows}, scheme={self.scheme}"


class QuantizedLinear(_Quantized):
    """y = x W^T + b with int8 or int4 weights: `adder.ops.quantized_linear` with what torch.nn.Linear has around it.

    Buffers `weight` (codes) and `scales`; `bias` is a float32 parameter that takes no gradient, or None. x is
    float32 or bfloat16, and so is y. An x that requires a gradient is refused by the operator.

    Example:
        >>> layer = QuantizedLinear.of(torch.nn.Linear(8, 3), "int8")
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 3])
        >>> sorted(layer.state_dict())
        ['bias', 'scales', 'weight']
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, scheme: Scheme = "int8"
    ):
        super().__init__(out_features, in_features, scheme)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear, scheme: Scheme) -> "QuantizedLinear":
        """Return a Linear's weight, rounded, and its bias, as it is but for its type."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, scheme=scheme)
        layer.hold(quantize(linear.weight, scheme))
        if layer.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().float().clone(), requires_grad=False)
        return layer

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.columns

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.rows

    def forward(self, x: Float[Tensor, "*outer i"]) -> Float[Tensor, "*outer o"]:
        """Return x W^T + b."""
        return self.product(x, None if self.bias is None else self.bias.float())

    def product(
        self, x: Float[Tensor, "*outer i"], bias: Float[Tensor, " o"] | None = None
    ) -> Float[Tensor, "*outer o"]:
        """Return x W^T, plus `bias` and not the layer's own."""
        return call(x, self.weight, self.scales, self.rows, self.columns, self.scheme, bias)


class QuantizedEmbedding(_Quantized):
    """The rows of an int8 or int4 matrix, float32, by their numbers: torch.nn.Embedding without training."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, scheme: Scheme = "int8"):
        super().__init__(num_embeddings, embedding_dim, scheme)

    @classmethod
    def of(cls, embedding: nn.Embedding, scheme: Scheme) -> "QuantizedEmbedding":
        """Return an Embedding's weight, rounded."""
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, scheme=scheme)
        layer.hold(quantize(embedding.weight, scheme))
        return layer

    def forward(self, ids: Int[Tensor, "*outer"]) -> Float[Tensor, "*outer d"]:
        """Return the rows of these numbers."""
        return self.quantized.row(ids)


def unbiased(
    module: nn.Module, x: Float[Tensor, "*outer i"]
) -> tuple[Float[Tensor, "*outer o"], Tensor | None]:
    """Return x W^T of a projection, and the bias that the caller adds in its own arithmetic.

    A module that replaced the projection, or that has hooks, is called as a whole.
    """
    if is_untouched(module, (QuantizedLinear,)):
        assert isinstance(module, QuantizedLinear)
        return module.product(x), module.bias
    if is_bare(module):
        assert isinstance(module, Linear)
        return linear(x, module.weight), module.bias
    return module(x), None
