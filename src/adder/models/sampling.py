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
        logits, largest = self._finite(logits, previous)
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        ids, logits = self._candidates((logits - largest) / self.temperature)
        # MPS has no float64; elsewhere it keeps the tail of a large vocabulary exact.
        dtype = torch.float32 if logits.device.type == "mps" else torch.float64
        uniform = _uniform(logits.shape[0], generator, dtype).to(logits.device)
        cumulative = logits.exp().cumsum(dim=-1, dtype=dtype)
        target = uniform[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target, right=True)
        return (drawn if ids is None else ids.gather(1, drawn))[:, 0]

    def log_probabilities(self, logits: Tensor, previous: Tensor | None = None) -> Tensor:
        """The logarithm of the distribution that `sample` draws from.

        Args:
            logits, previous: as in `sample`.

        Returns:
            (b, v), float32; -inf where a token cannot be drawn.

        Raises:
            UsageError, AdderError: as in `sample`.
        """
        logits, largest = self._finite(logits, previous)
        everywhere = torch.full_like(logits, -math.inf)
        if self.temperature == 0:
            return everywhere.scatter(1, logits.argmax(dim=-1, keepdim=True), 0.0)
        ids, logits = self._candidates((logits - largest) / self.temperature)
        logits = torch.log_softmax(logits, dim=-1)
        return logits if ids is None else everywhere.scatter(1, ids, logits)

    def _finite(self, logits: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check and penalise (b, v) logits; return them in float32, and the largest of each row (b, 1).

        Subtracting the largest first keeps a small temperature from overflowing.
        """
        if logits.ndim != 2 or logits.shape[1] == 0:
            raise UsageError(f"logits must have the shape (b, v); theirs is {tuple(logits.shape)}")
        logits = logits.float()
        if previous is not None and self.repetition_penalty != 1:
            logits = self._penalise(logits, previous)
        largest = logits.amax(dim=-1, keepdim=True)
        finite = torch.isfinite(largest[:, 0])
        if not finite.all():
            row = int((~finite).nonzero()[0, 0])
            raise AdderError(
                f"no token can be drawn: the logits of row {row} hold NaN or infinity, "
                f"or forbid every token"
            )
        return logits, largest

    def _penalise(self, logits: Tensor, previous: Tensor) -> Tensor:
        seen = previous if previous.dtype == torch.bool else _seen(previous, logits.shape[1])
        if seen.shape != logits.shape:
            raise UsageError(
                f"previous has {tuple(previous.shape)} beside logits {tuple(logits.shape)}: give "
                f"ids (b, m) or a mask (b, v) with the same b and v"
            )
        penalty, (rows, ids) = self.repetition_penalty, seen.nonzero(as_tuple=True)
        chosen = logits[rows, ids]
        penalised = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
        return logits.index_put((rows, ids), penalised)

    def _candidates(self, logits: Tensor) -> tuple[Tensor | None, Tensor]:
        """Apply top-k, top-p and min-p to logits (b, v) whose largest is 0.

        Returns:
            ids in rising order, and their logits, -inf where one is forbidden: (b, m). The ids are None where m = v.
        """
        vocab_size = logits.shape[1]
        ids = None
        if self.top_k is not None and self.top_k < vocab_size:
            ids = _largest(logits, self.top_k)
            logits = logits.gather(1, ids)
        if self.top_p is not None and self.top_p != 1:
            inside, logits = _nucleus(logits, self.top_p)
            ids = inside if ids is None else ids.gather(1, inside)
        if self.min_p:
            logits = torch.where(logits < math.log(self.min_p), -math.inf, logits)
        return ids, logits


def _largest(logits: Tensor, k: int) -> Tensor:
    """Ids (b, k), rising, of the k largest of (b, v), k < v; of equal ones those of lower ids.

    topk takes any of equal ones, and bfloat16 logits are often equal, so more than k are looked at.
    """
    m = k + 64
    while m < logits.shape[1]:
        values, ids = logits.topk(m, dim=-1)
        if bool((values[:, k - 1] > values[:, -1]).all()):  # all equals of the last are among them
            ids = ids.sort(dim=-1).values
            order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True).indices
            return ids.gather(1, order[:, :k].sort(dim=-1).values)
        m *= 4
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=-1).values


def _nucleus(logits: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Ids (b, m), rising, among which are the fewest most probable whose probabilities add up to p; their logits.

    The others are -inf. The m largest are sorted, and more of them where those do not suffice: a model that knows
    what it says needs few.
    """
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    total = logits.exp().sum(dim=-1, keepdim=True, dtype=dtype)
    vocab_size = logits.shape[1]
    m = 256
    while m < vocab_size:
        ids = logits.topk(m, dim=-1).indices.sort(dim=-1).values
        values = logits.gather(1, ids)
        kept = _kept(values, total, p)
        # One as small as the smallest of the m may have equals outside, of lower ids.
        smallest = values.amin(dim=-1, keepdim=True)
        if not bool((kept & (values == smallest)).any()):
            return ids, values.masked_fill(~kept, -math.inf)
        m *= 16
    kept = _kept(logits, total, p)
    ids = torch.arange(vocab_size, device=logits.device).expand_as(logits)
    return ids, logits.masked_fill(~kept, -math.inf)


def _kept(logits: Tensor, total: Tensor, p: float) -> Tensor:
    """Which of (b, m) belong to the fewest that reach p, the lower ids first among equals."""
    descending, order = logits.sort(dim=-1, descending=True, stable=True)
    cumulative = descending.exp().cumsum(dim=-1, dtype=total.dtype) / total
    kept = torch.ones_like(order, dtype=torch.bool)
    kept[:, 1:] = cumulative[:, :-1] < p
    return torch.zeros_like(kept).scatter(1, order, kept)


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
