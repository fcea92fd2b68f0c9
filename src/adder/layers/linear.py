"""The dense layer that our layers project with."""

from jaxtyping import Float
from torch import Tensor, nn

from adder.ops import linear


class Linear(nn.Linear):
    """torch.nn.Linear, multiplied by `adder.ops.linear`: the same parameters, names and initialisation."""

    def forward(self, input: Float[Tensor, "*outer i"]) -> Float[Tensor, "*outer o"]:
        """Return input W^T + b."""
        return linear(input, self.weight, self.bias)


def is_bare(module: nn.Module) -> bool:
    """Whether a module is a `Linear` that nothing was put around: its product may be taken without calling it.

    A layer that uses only part of a projection (its weight without its bias, some of its rows) asks first: a module
    that replaced it, as for low-rank fine-tuning, or that has hooks, is called as a whole.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return type(module) is Linear and not any((*hooks, module._backward_pre_hooks))
