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
    watched = nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    return not watched and is_untouched(module, (Linear,))


def is_untouched(module: nn.Module, classes: tuple[type, ...]) -> bool:
    """Whether a module is of one of these classes, not of a subclass, has no hooks, and no `forward` of its own.

    Hooks on all modules are not looked at: they are asked for once, not for each module.
    """
    # accelerate puts the class's forward into a model from which it takes its own wrapper.
    forward = module.__dict__.get("forward")
    own = forward is not None and getattr(forward, "__func__", None) is not type(module).forward
    return (
        type(module) in classes
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not own
    )
