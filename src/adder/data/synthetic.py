"""Sequences with known answers: drawn from a seed, in any number and at any length.

Tokens are shown as characters, so that a run of one reads and writes text like any other: noise is ".", what asks
for an answer is ">".
"""

import string
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from adder.data.vocabulary import Characters, Ids
from adder.errors import UsageError

NOT_ASKED = -100  # a target that costs nothing, as torch's cross_entropy takes it
NOISE, ASK = ".", ">"
_SYMBOLS = string.ascii_uppercase + string.ascii_lowercase
_MORE = 0x4E00  # where the characters begin that stand for tokens when those run out
_MOST = 20_000
SYNTHETIC = ("copying", "selective-copying", "induction-heads", "mqar", "parity", "listops")


@dataclass(frozen=True, kw_only=True)
class Synthetic(ABC):
    """A source of sequences whose answers are known. Every value is checked on construction (UsageError).

    Args:
        length: tokens of a row, which a call of `batch` may change.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    length: int = 256

    def __post_init__(self) -> None:
        self._check(self.length)

    @property
    @abstractmethod
    def alphabet(self) -> str:
        """The character of every token: in the order of their ids, which is that of code points."""

    @property
    @abstractmethod
    def shortest(self) -> int:
        """The least length of a row."""

    @abstractmethod
    def _draw(self, random: np.random.Generator, rows: int, length: int) -> tuple[Ids, Ids]:
        """Return ids and targets, (b l) each."""

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    @property
    def vocabulary(self) -> Characters:
        return Characters(self.alphabet)

    def batch(
        self, rows: int, seed: int, step: int, length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ids and targets, (b l) int64 each: a pure function of the arguments.

        What logits[t] should say is targets[t], -100 where nothing is asked.

        Raises:
            UsageError: the length is too short for the task.
        """
        length = self.length if length is None else length
        self._check(length)
        ids, targets = self._draw(np.random.default_rng([seed, step]), rows, length)
        return torch.from_numpy(ids), torch.from_numpy(targets)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def _check(self, length: int) -> None:
        self._need("length", length, self.shortest)

    def _need(self, option: str, value: object, least: int, most: int | None = None) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{self.name}: {option} is {value!r}, expected a whole number")
        if value < least or (most is not None and value > most):
            bounds = f"at least {least}" if most is None else f"{least} to {most}"
            raise UsageError(f"{self.name}: {option} is {value}, expected {bounds}")


@dataclass(frozen=True, kw_only=True)
class _Lists(Synthetic):
    """Symbols to be said again at the end, where as many ">" ask for them.

    Args:
        tokens: how many are to be copied.
        symbols: different ones, beside noise and what asks.
    """

    tokens: int = 16
    symbols: int = 14

    def __post_init__(self) -> None:
        self._need("tokens", self.tokens, 1)
        self._need("symbols", self.symbols, 1, _MOST)
        super().__post_init__()

    @property
    def alphabet(self) -> str:
        return NOISE + ASK + _symbols(self.symbols)

    @property
    def shortest(self) -> int:
        return 2 * self.tokens

    @abstractmethod
    def _places(self, random: np.random.Generator, rows: int, room: int) -> Ids:
        """Where the symbols stand, (b tokens), rising."""

    def _draw(self, random: np.random.Generator, rows: int, length: int) -> tuple[Ids, Ids]:
        data = random.integers(2, self.symbols + 2, (rows, self.tokens))
        ids = np.zeros((rows, length), dtype=np.int64)
        np.put_along_axis(ids, self._places(random, rows, length - self.tokens), data, 1)
        ids[:, -self.tokens :] = 1
        targets = np.full_like(ids, NOT_ASKED)
        targets[:, -self.tokens :] = data
        return ids, targets


@dataclass(frozen=True, kw_only=True)
class Copying(_Lists):
    """A list, then noise, then as many ">" as the list is long: say it again. Distances are fixed."""

    name = "copying"
    source = "Arjovsky et al., 2016, section 4.1; Gu and Dao, 2023 (arXiv 2312.00752), figure 2"

    def _places(self, random: np.random.Generator, rows: int, room: int) -> Ids:  # noqa: ARG002
        return np.tile(np.arange(self.tokens), (rows, 1))


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(_Lists):
    """A list scattered over noise, then as many ">": say it again. The distances are another in every row."""

    name = "selective-copying"
    source = "Gu and Dao, 2023 (arXiv 2312.00752), section 4.1.1 and appendix E.1"

    def _places(self, random: np.random.Generator, rows: int, room: int) -> Ids:
        return np.sort(_choose(random, rows, room, self.tokens), axis=1)


@dataclass(frozen=True, kw_only=True)
class InductionHeads(Synthetic):
    """One ">" somewhere among random symbols and one at the end: say what followed the first.

    Args:
        symbols: different ones, beside the ">".
    """

    name = "induction-heads"
    source = "Gu and Dao, 2023 (arXiv 2312.00752), section 4.1.2 and appendix E.1"
    symbols: int = 15

    def __post_init__(self) -> None:
        self._need("symbols", self.symbols, 1, _MOST)
        super().__post_init__()

    @property
    def alphabet(self) -> str:
        return ASK + _symbols(self.symbols)

    @property
    def shortest(self) -> int:
        return 3

    def _draw(self, random: np.random.Generator, rows: int, length: int) -> tuple[Ids, Ids]:
        ids = random.integers(1, self.symbols + 1, (rows, length))
        at = random.integers(0, length - 2, rows)
        targets = np.full_like(ids, NOT_ASKED)
        row = np.arange(rows)
        targets[:, -1] = ids[row, at + 1]
        ids[row, at] = ids[:, -1] = 0
        return ids, targets


@dataclass(frozen=True, kw_only=True)
class AssociativeRecall(Synthetic):
    """Pairs of a key and a value; then, among noise, keys again: say the value of each.

    Args:
        pairs: how many; every key is asked for once.
        keys, values: different ones to choose from.
    """

    name = "mqar"
    source = "Arora et al., 2023 (arXiv 2312.04927), appendix: multi-query associative recall"
    length: int = 128
    pairs: int = 8
    keys: int = 32
    values: int = 32

    def __post_init__(self) -> None:
        self._need("keys", self.keys, 1, _MOST)
        self._need("values", self.values, 1, _MOST - self.keys)
        self._need("pairs", self.pairs, 1, self.keys)
        super().__post_init__()

    @property
    def alphabet(self) -> str:
        return NOISE + _symbols(self.keys + self.values)

    @property
    def shortest(self) -> int:
        return 3 * self.pairs

    def _draw(self, random: np.random.Generator, rows: int, length: int) -> tuple[Ids, Ids]:
        begun = 2 * self.pairs
        keys = 1 + _choose(random, rows, self.keys, self.pairs)
        values = 1 + self.keys + random.integers(0, self.values, (rows, self.pairs))
        ids = np.zeros((rows, length), dtype=np.int64)
        ids[:, 0:begun:2], ids[:, 1:begun:2] = keys, values
        targets = np.full_like(ids, NOT_ASKED)
        places = begun + _choose(random, rows, length - begun, self.pairs)
        np.put_along_axis(ids, places, keys, 1)
        np.put_along_axis(targets, places, values, 1)
        return ids, targets


@dataclass(frozen=True, kw_only=True)
class Parity(Synthetic):
    """Random bits: say after each whether there were an odd number of ones up to it."""

    name = "parity"
    source = "Hahn, 2020 (arXiv 1906.06755); Mamba-3 (arXiv 2603.15569) measures it"
    length: int = 40

    @property
    def alphabet(self) -> str:
        return "01"

    @property
    def shortest(self) -> int:
        return 1

    def _draw(self, random: np.random.Generator, rows: int, length: int) -> tuple[Ids, Ids]:
        ids = random.integers(0, 2, (rows, length))
        return ids, ids.cumsum(1) % 2


def _symbols(count: int) -> str:
    return _SYMBOLS[:count] + "".join(chr(_MORE + i) for i in range(max(0, count - len(_SYMBOLS))))


def _choose(random: np.random.Generator, rows: int, room: int, count: int) -> Ids:
    """Return `count` different numbers below `room` for every row, (b count), in random order."""
    return np.stack([random.choice(room, count, replace=False) for _ in range(rows)])


def make_synthetic(name: str, **options: Any) -> Synthetic:
    """Return the source of a name in SYNTHETIC.

    Raises:
        UsageError: there is none, it has no such option, or a value is out of range.
    """
    from adder.data.listops import ListOps

    kinds = {
        kind.name: kind
        for kind in (Copying, SelectiveCopying, InductionHeads, AssociativeRecall, Parity, ListOps)
    }
    if name not in kinds:
        raise UsageError(f"no task {name}: choose one of {', '.join(SYNTHETIC)}")
    known = [field.name for field in fields(kinds[name])]
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(f"{name} has no {unknown[0]}: it has {', '.join(known)}")
    kind: type[Synthetic] = kinds[name]
    return kind(**options)
