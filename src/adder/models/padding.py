"""A padded batch, with the padding of each row moved to its front, where a layer can pass over it."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from adder.errors import UsageError


@dataclass(frozen=True)
class Padding:
    """Where the padding of a batch is, wherever that is: left, right or in between.

    order (b l): the steps of each row, its padding first and then its tokens in their order.
    count (b): how many steps of each row are padding.
    """

    order: Int[Tensor, "b l"]
    count: Int[Tensor, " b"]

    @classmethod
    def of(cls, mask: Int[Tensor, "b l"] | None, input_ids: Int[Tensor, "b l"]) -> "Padding | None":
        """Read an attention mask: nonzero where a token is. None where there is no padding.

        Raises:
            UsageError: the mask is of another shape than the ids, or holds other than 0 and 1.
        """
        if mask is None:
            return None
        if mask.shape != input_ids.shape:
            raise UsageError(
                f"LanguageModel: attention_mask has shape {tuple(mask.shape)}, expected that of input_ids, "
                f"{tuple(input_ids.shape)}: it says of these ids which are padding, not of those before them"
            )
        if not torch.compiler.is_compiling():  # which cannot look at values
            if bool(((mask != 0) & (mask != 1)).any()):
                raise UsageError("LanguageModel: attention_mask holds other numbers than 0 and 1")
            if bool(mask.all()):
                return None
        given = mask.to(torch.int32)
        return cls(given.argsort(dim=1, stable=True), (given == 0).sum(1))

    def to_front(self, values: Tensor) -> Tensor:
        """Return values (b l) with each row's padding in front."""
        return values.gather(1, self.order)

    def ids(self, input_ids: Tensor) -> Tensor:
        """Return the ids with the padding in front, each of it the row's last token: an id that is known to exist."""
        front = self.to_front(input_ids)
        return torch.where(self.steps(), front[:, -1:], front)

    def seq_idx(self, seq_idx: Tensor) -> Tensor:
        """Return seq_idx with the padding in front, as part of the row's first sequence."""
        front = self.to_front(seq_idx)
        first = self.count.clamp(max=front.shape[1] - 1)[:, None]
        return torch.where(self.steps(), front.gather(1, first), front)

    def labels(self, labels: Tensor) -> Tensor:
        """Return labels with the padding in front; none of it, nor what is behind it, has a token before it."""
        at = torch.arange(labels.shape[1], device=labels.device)
        return self.to_front(labels).masked_fill(at <= self.count[:, None], -100)

    def steps(self) -> Tensor:
        """Return where the padding is once it is in front: (b l)."""
        at = torch.arange(self.order.shape[1], device=self.order.device)
        return at < self.count[:, None]

    def back(self, values: Tensor) -> Tensor:
        """Return values (b l) or (b l d) to the places their steps had."""
        inverse = self.order.argsort(dim=1)
        if values.ndim == 2:
            return values.gather(1, inverse)
        return values.gather(1, inverse.unsqueeze(2).expand(values.shape))

    def count_of(self, start: int, length: int) -> Tensor:
        """Return how many of `length` steps from `start` on are padding: (b)."""
        return (self.count - start).clamp(0, length)
