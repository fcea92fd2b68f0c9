"""The dense layers of a model on `adder.ops.linear`, which multiplies float32 by oneDNN where that is faster."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from adder.ops import linear
from adder.ops.linear import cpu


class Projection(nn.Linear):
    """torch.nn.Linear whose large float32 products are ours. A model's own nn.Linear becomes one, and back.

    Saved or copied as a module it is an nn.Linear again, so that a file does not depend on adder.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b."""
        # An expert that nothing was routed to has no rows; a quantised weight is a tensor of its own kind.
        if type(self.weight) is nn.Parameter and input.numel() and cpu.serves(input, self.weight):
            return linear(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain, (), self.__dict__


def _plain() -> nn.Linear:
    return nn.Linear.__new__(nn.Linear)


def replace(model: nn.Module) -> None:
    """Make every dense layer of a model a `Projection`, except those whose class or forward somebody changed."""
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in module.__dict__:
            module.__class__ = Projection


def restore(model: nn.Module) -> None:
    """Make every `Projection` an nn.Linear again."""
    for module in model.modules():
        if type(module) is Projection:
            module.__class__ = nn.Linear  # type: ignore[assignment]
