"""How long each layer of a language model remembers, how far each token moves it, and where one output came from.

A state h' = A h fades as exp(-|Re A| t), and a token takes a time Delta (dt in S4): after T tokens
exp(-T Delta |Re A|) is left.

    time constant = 1 / (Delta |Re A|) tokens until e^-1 is left;      ln 100 = 4.6 times as many until 1 % is left

Mamba (arXiv:2312.00752), section 3.5.2: Delta balances how much a token is taken in against how much is forgotten.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adder.errors import UsageError
from adder.explanation.held import Recall, linear_recall, selective_recall
from adder.explanation.linear import index_of
from adder.explanation.row import Numbers, Row, exact, linear_row, selective_row
from adder.layers import Mamba, Mamba2, S4Block
from adder.models import LanguageModel

EXPLAINED = ("mamba", "mamba2", "s4", "s4d")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LayerMemory:
    """What one layer remembers, in float64.

    time_constants: tokens until e^-1 of a number in the state is left, infinite where nothing fades. Mamba (d, n),
        from the mean of Delta over the tokens; Mamba-2 (h,), one for each head; S4 and S4D (h, m), one for each stored
        eigenvalue. S4's are those of its diagonal part: the low-rank part only makes the state fade faster, so that the
        longest of a channel bounds the whole of it.
    steps: (l,), Delta of each token, the mean over channels (heads); None for S4 and S4D, whose step is constant.
    dt: (h,) or (h, m), the constant step sizes of S4 and S4D; None for the others.
    shares: (t + 1,), of each source position the part of all that the layer's scan took in for its output at the token
        asked for, without the skip: |contributions| of `Row`, summed over the channels.
    kept: (t + 1,), the part of each input of the scan that the state after the token asked for can still be read for:
        `Recall.kept`, the mean over the channels; None for S4D's method dss, which has no state.
    """

    time_constants: Numbers
    steps: Numbers | None
    dt: Numbers | None
    shares: Numbers
    kept: Numbers | None

    def horizons(
        self, left: float = math.exp(-1), quantiles: Sequence[float] = QUANTILES
    ) -> Numbers:
        """Tokens until the part `left` is left: quantiles over the layer's state; each is a value that occurs.

        Raises:
            UsageError: `left` is not between 0 and 1, or a quantile is outside of [0, 1].
        """
        if not 0 < left < 1:
            raise UsageError(f"horizons: left is {left}, expected a number between 0 and 1")
        if any(not 0 <= each <= 1 for each in quantiles):
            raise UsageError(
                f"horizons: quantiles are {tuple(quantiles)}, expected numbers from 0 to 1"
            )
        tokens = -math.log(left) * self.time_constants
        return np.quantile(tokens, list(quantiles), method="inverted_cdf")

    @property
    def mean_step(self) -> float:
        """Delta over all tokens and channels, or the mean dt."""
        known = self.steps if self.steps is not None else self.dt
        assert known is not None
        return float(known.mean())

    @property
    def held(self) -> float | None:
        """How many tokens' inputs the state of a channel holds, in the mean."""
        return None if self.kept is None else float(self.kept.sum())

    def most(self, count: int) -> list[tuple[int, float]]:
        """The source positions of the largest shares, (position, share), largest first; none of a share of 0."""
        order = np.argsort(-self.shares, kind="stable")[:count]
        return [(int(s), float(self.shares[s])) for s in order if self.shares[s] > 0]


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns: the model's kind of layer, the tokens it read, its layers; of one of them, more.

    row: where the scan's output there came from.
    recall: the state behind it, and what can be drawn from it of the inputs; None for S4D's method dss.
    """

    kind: str
    ids: npt.NDArray[np.int64]
    layers: tuple[LayerMemory, ...]
    row: Row
    recall: Recall | None

    @property
    def kernel(self) -> Numbers | None:
        """(h, t + 1), the convolution kernel of an S4 or S4D, from no lag to t; None for Mamba, which has none."""
        return None if self.layers[0].dt is None else self.row.attention[::-1].T


def explain(model: LanguageModel, ids: Any, *, layer: int = -1, token: int = -1) -> Explanation:
    """Say what a language model of mamba, mamba2, s4 or s4d remembers, and what it took in for one token.

    The model reads `ids` once, from an empty state, without gradients. Of each layer come the time constants, the step
    of each token, how much it took in of which for its output at `token`, and how much of each its state still holds;
    of one, `layer`, the whole row of its scan there, what each token up to it contributed to each channel, and the
    inputs as they can be drawn from its state. All numbers are float64 on the CPU, of the inputs that the layers saw in
    the model's own type.

    Args:
        model: the model; it stays as it is.
        ids: (l,), token ids, at least 2.
        layer, token: of the row; negative numbers count from the end.

    Raises:
        UsageError: a model of other layers, fewer than 2 ids, an id outside of the vocabulary, a layer or a token that
            is not there, numbers that are not finite.

    Example:
        >>> import adder
        >>> model = adder.LanguageModel(adder.LanguageModelConfig(vocab_size=10, d_model=8, n_layer=2))
        >>> seen = adder.explain(model, [1, 2, 3, 4], layer=0)
        >>> seen.layers[0].steps.shape, seen.row.contributions.shape
        ((4,), (4, 16))
    """
    if not isinstance(model, LanguageModel):
        raise UsageError(f"explain: model is {type(model).__name__}, expected a LanguageModel")
    if model.config.layer not in EXPLAINED:
        raise UsageError(
            f"explain: the model's layer is {model.config.layer}, expected one with a state space: "
            + ", ".join(EXPLAINED)
        )
    known = _checked(ids, model.config.vocab_size)
    blocks = list(model.backbone.blocks())
    chosen = index_of("explain", "layer", layer, len(blocks))
    position = index_of("explain", "token", token, len(known))
    layers: dict[int, LayerMemory] = {}
    found: list[tuple[Row, Recall | None]] = []

    def look(index: int, mixer: Any, u: Tensor) -> None:
        read = _linear if isinstance(mixer, S4Block) else _selective
        layers[index], row, recall = read(mixer, u, index, position)
        if index == chosen:
            found.append((row, recall))

    handles = [
        block.mixer.register_forward_pre_hook(
            lambda mixer, given, index=index: look(index, mixer, given[0])
        )
        for index, block in enumerate(blocks)
    ]
    try:
        with torch.no_grad():
            device = model.backbone.norm_f.weight.device
            model.backbone(torch.from_numpy(known).to(device)[None], None, None)
    finally:
        for handle in handles:
            handle.remove()
    return Explanation(
        model.config.layer, known, tuple(layers[i] for i in range(len(blocks))), *found[0]
    )


def _checked(ids: Any, size: int) -> npt.NDArray[np.int64]:
    given = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if given.ndim != 1 or not (np.issubdtype(given.dtype, np.integer) or given.size == 0):
        raise UsageError(
            f"explain: ids has shape {given.shape} and type {given.dtype}, expected (l,) whole numbers"
        )
    if given.size < 2:
        raise UsageError(f"explain: ids has {given.size} tokens, expected at least 2")
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= size:
        raise UsageError(
            f"explain: ids holds {low if low < 0 else high}, expected 0 to {size - 1}: the model's tokens"
        )
    return given.astype(np.int64)


def _selective(
    mixer: Mamba | Mamba2, u: Tensor, layer: int, token: int
) -> tuple[LayerMemory, Row, Recall]:
    inputs = mixer.scan_inputs(u)
    steps, A = exact(inputs.steps)[0], exact(inputs.A)  # (l d), or (l h)
    mean = steps.mean(dim=0)
    rates = mean * A.abs() if A.ndim == 1 else mean[:, None] * A.abs()
    row, recall = selective_row(inputs, layer, token), selective_recall(inputs, token)
    kept = recall.kept.mean(axis=1)
    memory = LayerMemory(_inverse(rates), steps.mean(dim=1).numpy(), None, row.shares, kept)
    return memory, row, recall


def _linear(
    mixer: S4Block, u: Tensor, layer: int, token: int
) -> tuple[LayerMemory, Row, Recall | None]:
    ssm = mixer.layer
    u = u if mixer.input_linear is None else mixer.input_linear(u)
    dt, A = exact(ssm.step_sizes()), exact(ssm.eigenvalues().real)
    rates = A.abs() * (dt if dt.ndim == 2 else dt[:, None])
    row, recall = linear_row(ssm, u, layer, token), linear_recall(ssm, u, token)
    kept = None if recall is None else recall.kept.mean(axis=1)
    return LayerMemory(_inverse(rates), None, dt.numpy(), row.shares, kept), row, recall


def _inverse(rates: Tensor) -> Numbers:
    return rates.reciprocal().numpy()
