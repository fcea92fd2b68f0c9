"""S4 and S4D inside a language model: their kernels, and the past that a state of HiPPO-LegS holds."""

import numpy as np
import torch
from torch import Tensor

from adder.errors import UsageError
from adder.explanation.row import Numbers, exact
from adder.layers import S4, S4Block
from adder.layers.linear_ssm import LinearSSM
from adder.models import LanguageModel
from adder.ops.dplr_kernel.discrete import unpair
from adder.theory import nplr, reconstruct

# A, P and B of a layer may differ from HiPPO-LegS by so much of the largest: the rounding of float32, and no training.
_SAME = 1e-5


def kernel(model: LanguageModel, layer: int, length: int) -> Numbers:
    """The convolution kernel of a layer of S4 or S4D: (h, length), y[t] = sum_k K[k] u[t - k] + D u[t].

    Raises:
        UsageError: another kind of model, no such layer, a length below 1.
    """
    if not isinstance(length, int) or length < 1:
        raise UsageError(f"kernel: length is {length!r}, expected a whole number of at least 1")
    ssm = linear_layer("kernel", model, layer)
    with torch.no_grad():
        return exact(ssm.kernel(length))[0].numpy()


def recall(model: LanguageModel, layer: int, state: Tensor, ago: Numbers) -> Numbers:
    """Draw the past inputs of a layer of S4 from its state: (b, h, times), u of each channel so many tokens ago.

    The state of HiPPO-LegS holds the past under the weight e^(-s dt), s tokens ago: see `adder.theory.reconstruct`.
    Only a layer whose A and B are still those of LegS has such a state; the step sizes may be anything.

    Args:
        state: (b, h, n), the part of a model's state that is this layer's.
        ago: (times,), tokens before the end of the last one, 0 or more; the middle of the last one is 0.5.

    Raises:
        UsageError: another kind of model, no such layer, a state of another shape, or A and B were trained away from
            LegS.
    """
    ssm = linear_layer("recall", model, layer)
    if not isinstance(ssm, S4):
        raise UsageError("recall: the layer is an S4D, expected an S4: a diagonal is not LegS")
    h, n = ssm.channels, ssm.state_size
    if not isinstance(state, Tensor) or state.ndim != 3 or state.shape[1:] != (h, n):
        came = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise UsageError(f"recall: state is {came}, expected (batch, {h}, {n})")
    V = _basis_of_legs(ssm)
    coefficients = 2 * (unpair(exact(state)) @ V.mT).real  # (b h n)
    steps = exact(ssm.step_sizes(1.0))
    drawn = [
        reconstruct(coefficients[:, i], "legs", np.asarray(ago), window=float(1 / steps[i]))
        for i in range(h)
    ]
    return torch.stack(drawn, dim=1).numpy()


def linear_layer(name: str, model: LanguageModel, layer: int) -> LinearSSM:
    """The S4 or S4D inside a block of a model, negative numbers from the end."""
    if not isinstance(model, LanguageModel) or model.config.layer not in ("s4", "s4d"):
        kind = model.config.layer if isinstance(model, LanguageModel) else type(model).__name__
        raise UsageError(f"{name}: the model is {kind}, expected a LanguageModel of s4 or s4d")
    blocks = list(model.backbone.blocks())
    mixer = blocks[index_of(name, "layer", layer, len(blocks))].mixer
    assert isinstance(mixer, S4Block)
    return mixer.layer


def index_of(name: str, what: str, index: int, count: int) -> int:
    """An index from 0, of one that may count from the end; UsageError where it is out of range."""
    if isinstance(index, bool) or not isinstance(index, int) or not -count <= index < count:
        raise UsageError(
            f"{name}: {what} is {index!r}, expected a whole number from {-count} to {count - 1}"
        )
    return index % count


def _basis_of_legs(ssm: S4) -> Tensor:
    """V (n m) with x = 2 Re V z, where z is the layer's own state."""
    Lambda, P, B, V = nplr("legs", ssm.state_size)
    own_P, own_B = (torch.view_as_complex(exact(each)) for each in (ssm.P, ssm.B))
    own = ssm.eigenvalues().detach().cpu()
    for name, got, expected in (("A", own, Lambda), ("P", own_P, P[:, None]), ("B", own_B, B)):
        error = float((got - expected).abs().max() / expected.abs().max())
        if error > _SAME:
            raise UsageError(
                f"recall: {name} of the layer is {error:.1e} from HiPPO-LegS's, relative to its largest: its state is "
                "no longer the projection of the past that LegS makes"
            )
    return V
