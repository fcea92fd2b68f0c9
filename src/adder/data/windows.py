"""Which part of the training text each step reads: a pure function of the seed and the step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adder.data.vocabulary import Ids
from adder.errors import UsageError


@dataclass(frozen=True)
class Window:
    """What one step reads: inputs and targets (b l) int64, and whether every row starts anew."""

    inputs: Tensor
    targets: Tensor
    starts: bool

    def parts(self, count: int, device: torch.device) -> list[tuple[Tensor, ...]]:
        """(inputs, targets) of `count` equal shares of the rows, on a device."""
        inputs, targets = self.inputs.to(device), self.targets.to(device)
        return list(zip(inputs.chunk(count), targets.chunk(count), strict=True))


class Windows(ABC):
    """The windows of a text, one for each step; nothing about them has to be saved."""

    def __init__(self, ids: Ids, rows: int, length: int, seed: int) -> None:
        """Windows of `rows` rows and `length` tokens over `ids` (n,); n must exceed `length`."""
        if rows < 1 or length < 1:
            raise UsageError(f"a window needs rows and a length, got {rows} x {length}")
        if ids.size < length + 1:
            raise UsageError(
                f"the training text has {ids.size} tokens, one window needs {length + 1}: "
                "give a longer text or a smaller --length"
            )
        self.ids = torch.from_numpy(ids)
        self.rows = rows
        self.length = length
        self.seed = seed

    @abstractmethod
    def window(self, step: int) -> Window:
        """The window of a step, counted from 0."""

    def _at(self, starts: Ids, begins: bool) -> Window:
        # The text is read as a ring, so a row may run over its end into its beginning.
        places = torch.from_numpy(starts)[:, None] + torch.arange(self.length + 1)
        tokens = self.ids[places % self.ids.numel()]
        return Window(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), begins)


class CarriedWindows(Windows):
    """Every row reads a stretch of its own from window to window, so that its state can be carried.

    The rows divide the text between them. When all have read their stretches, a pass is over:
    the next one divides the text at another place, drawn from the seed, and starts from no state.
    """

    def __init__(self, ids: Ids, rows: int, length: int, seed: int) -> None:
        super().__init__(ids, rows, length, seed)
        self.steps_in_pass = max(1, ids.size // (rows * length))

    def window(self, step: int) -> Window:
        number, step_in_pass = divmod(step, self.steps_in_pass)
        n = self.ids.numel()
        offset = int(np.random.default_rng((self.seed, number)).integers(n))
        starts = offset + np.arange(self.rows) * n // self.rows + step_in_pass * self.length
        return self._at(starts, step_in_pass == 0)


class RandomWindows(Windows):
    """Every row of every step starts at a place of its own, drawn from the seed and the step."""

    def window(self, step: int) -> Window:
        generator = np.random.default_rng((self.seed, step))
        starts = generator.integers(self.ids.numel() - self.length, size=self.rows)
        return self._at(starts, True)
