"""From logits to the next token: temperature, top-k, top-p, min-p and the repetition penalty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adder.errors import AdderError, UsageError

SMALLEST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampler:
    """How a next token is chosen from the logits of a model.

    The steps are taken in this order, each where it is asked for:

    1. repetition penalty r: the logit of a token seen before becomes logit / r where positive and
       logit * r where negative (CTRL, Keskar et al. 2019, arXiv:1909.05858, section 4.1);
    2. temperature T: logits / T; T = 0 takes the most probable token;
    3. top-k: the k most probable tokens stay;
    4. top-p: the fewest most probable tokens stay whose probabilities add up to p or more
       (Holtzman et al. 2020, arXiv:1904.09751, section 3.1);
    5. min-p: tokens stay whose probability is at least min_p times the largest one.

    Among equal logits the token with the lower id counts as the more probable, so top-k keeps
    exactly k tokens. The most probable token always stays.

    Args:
        temperature: 0, or at least 1e-6.
        top_k: 1 or more; the vocabulary size or more keeps every token.
        top_p: in (0, 1]; 1 keeps every token.
        min_p: in [0, 1]; 0 keeps every token.
        repetition_penalty: positive; above 1 discourages repetition.

    Raises:
        UsageError: an argument outside its range.

    Example:
        >>> logits = torch.tensor([[0.0, 2.0, 1.0]])
        >>> Sampler(temperature=0).sample(logits)
        tensor([1])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not SMALLEST_TEMPERATURE <= self.temperature < math.inf:
            raise UsageError(
                f"temperature must be 0 (the most probable token) or at least "
                f"{SMALLEST_TEMPERATURE:g}, and finite; it is {self.temperature}"
            )
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 1):
            raise UsageError(f"top_k must be a whole number, 1 or more; it is {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be above 0 and at most 1; it is {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p must be between 0 and 1; it is {self.min_p}")
        if not 0 < self.repetition_penalty < math.inf:
            raise UsageError(
                f"repetition_penalty must be positive and finite; it is {self.repetition_penalty}"
            )

    def sample(
        self,
        logits: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """Draw one token for each row.

        Args:
            logits: (b, v), any floating dtype; -inf forbids a token.
            generator: where the random numbers come from. One number is drawn for each row, so
                with one generator for each row (a sequence of b) the draw of a row does not
                depend on the other rows. `None` is PyTorch's global generator.
            previous: the tokens seen before, for the repetition penalty: ids (b, m), where a
                negative id is padding, or a boolean mask (b, v).

        Returns:
            ids (b,), int64, on the device of the logits.

        Raises:
            UsageError: shapes that disagree.
            AdderError: a row that holds NaN or +inf, or nothing but -inf.
        """
        log_probabilities = self.log_probabilities(logits, previous)
        if self.temperature == 0:
            return log_probabilities.argmax(dim=-1)
        # MPS has no float64; elsewhere it keeps the tail of a large vocabulary exact.
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        uniform = _uniform(logits.shape[0], generator, dtype).to(logits.device)
        cumulative = log_probabilities.to(dtype).exp().cumsum(dim=-1)
        target = uniform[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True)[:, 0]

    def log_probabilities(self, logits: Tensor, previous: Tensor | None = None) -> Tensor:
        """The logarithm of the distribution that `sample` draws from.

        Args:
            logits, previous: as in `sample`.

        Returns:
            (b, v), float32; -inf where a token cannot be drawn.

        Raises:
            UsageError, AdderError: as in `sample`.
        """
        if logits.ndim != 2 or logits.shape[1] == 0:
            raise UsageError(f"logits must have the shape (b, v); theirs is {tuple(logits.shape)}")
        logits = logits.float()
        if previous is not None and self.repetition_penalty != 1:
            logits = self._penalise(logits, previous)
        largest = logits.max(dim=-1, keepdim=True).values
        if not torch.isfinite(largest).all():
            row = int((~torch.isfinite(largest[:, 0])).nonzero()[0, 0])
            raise AdderError(
                f"no token can be drawn: the logits of row {row} hold NaN or infinity, "
                f"or forbid every token"
            )
        if self.temperature == 0:
            chosen = torch.full_like(logits, -math.inf)
            return chosen.scatter(1, logits.argmax(dim=-1, keepdim=True), 0.0)
        # Subtracting first keeps a small temperature from overflowing.
        logits = (logits - largest) / self.temperature
        return torch.log_softmax(self._filter(logits), dim=-1)

    def _penalise(self, logits: Tensor, previous: Tensor) -> Tensor:
        seen = previous if previous.dtype == torch.bool else _seen(previous, logits.shape[1])
        if seen.shape != logits.shape:
            raise UsageError(
                f"previous has {tuple(previous.shape)} beside logits {tuple(logits.shape)}: give "
                f"ids (b, m) or a mask (b, v) with the same b and v"
            )
        penalty = self.repetition_penalty
        penalised = torch.where(logits > 0, logits / penalty, logits * penalty)
        return torch.where(seen, penalised, logits)

    def _filter(self, logits: Tensor) -> Tensor:
        """Put -inf where top-k, top-p or min-p forbids. `logits` have their largest at 0."""
        vocab_size = logits.shape[1]
        top_k = self.top_k if self.top_k is not None and self.top_k < vocab_size else None
        top_p = self.top_p if self.top_p != 1 else None
        if top_k is not None or top_p is not None:
            descending, ids = logits.sort(dim=-1, descending=True, stable=True)
            if top_k is not None:
                descending[:, top_k:] = -math.inf
            if top_p is not None:
                cumulative = descending.softmax(dim=-1).cumsum(dim=-1)
                descending[:, 1:].masked_fill_(cumulative[:, :-1] >= top_p, -math.inf)
            logits = torch.empty_like(logits).scatter(1, ids, descending)
        if self.min_p:
            logits = logits.masked_fill(logits < math.log(self.min_p), -math.inf)
        return logits


def _seen(ids: Tensor, vocab_size: int) -> Tensor:
    """ids (b, m), negative for padding -> mask (b, v)."""
    if ids.ndim != 2:
        raise UsageError(f"previous ids must have the shape (b, m); theirs is {tuple(ids.shape)}")
    if ids.numel() and int(ids.max()) >= vocab_size:
        raise UsageError(f"previous holds the id {int(ids.max())}; there are {vocab_size} tokens")
    mask = torch.zeros(ids.shape[0], vocab_size + 1, dtype=torch.bool, device=ids.device)
    padding_last = torch.where(ids < 0, vocab_size, ids)
    return mask.scatter(1, padding_last, True)[:, :vocab_size]


def _uniform(
    rows: int, generator: torch.Generator | Sequence[torch.Generator] | None, dtype: torch.dtype
) -> Tensor:
    """(rows,) numbers in [0, 1), one from each generator where there is one for each row."""
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        return torch.rand(rows, generator=generator, dtype=dtype, device=device)
    if len(generator) != rows:
        raise UsageError(f"{len(generator)} generators were given for {rows} rows")
    return torch.cat([_uniform(1, one, dtype) for one in generator])
