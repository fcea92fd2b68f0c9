"""ListOps: nested lists of digits with an operator each, and the digit they come to."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adder.data.synthetic import NOISE, NOT_ASKED, Synthetic
from adder.data.vocabulary import Ids

# An operator's letter stands for it and its opening bracket.
OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "m": min,
    "M": max,
    "d": lambda values: int(np.median(values)),
    "s": lambda values: sum(values) % 10,
}
CLOSE, EQUALS = "]", "="
_DIGITS = "0123456789"
_LEAF = 0.75  # how probable a digit is where a list might be


@dataclass(frozen=True, kw_only=True)
class ListOps(Synthetic):
    """A tree such as s 2 3 M 4 9 ] ], which is [SUM_MOD 2 3 [MAX 4 9 ] ]: say its value after "=".

    Minimum (m), maximum (M), median (d, rounded down) and sum modulo 10 (s) of 2 to `arguments` values. An argument is
    a list with probability 0.25 until `depth` lists are open. Trees that are too short or too long are drawn anew;
    a row begins with as much noise as is left.

    Args:
        least: tokens that a tree has at least.
        depth: lists within each other at most.
        arguments: values of a list at most.
    """

    name = "listops"
    source = "Nangia and Bowman, 2018; lengths and arguments of Long Range Arena (arXiv 2011.04006)"
    length: int = 512
    least: int = 16
    depth: int = 10
    arguments: int = 10

    def __post_init__(self) -> None:
        self._need("least", self.least, 4)
        self._need("depth", self.depth, 2, 100)
        self._need("arguments", self.arguments, 2, 100)
        super().__post_init__()

    @property
    def alphabet(self) -> str:
        return "".join(sorted(NOISE + _DIGITS + "".join(OPERATORS) + CLOSE + EQUALS))

    @property
    def shortest(self) -> int:
        return self.least + self.arguments + 2

    def value(self, text: str) -> int:
        """Return the digit that a tree in the alphabet comes to, without its noise and "="."""
        open_lists: list[tuple[str, list[int]]] = [("", [])]
        for character in text:
            if character in OPERATORS:
                open_lists.append((character, []))
            elif character == CLOSE:
                operator, values = open_lists.pop()
                open_lists[-1][1].append(OPERATORS[operator](values))
            else:
                open_lists[-1][1].append(int(character))
        ((_, (value,)),) = open_lists
        return value

    def _draw(self, random: np.random.Generator, rows: int, length: int) -> tuple[Ids, Ids]:
        ids = np.zeros((rows, length), dtype=np.int64)
        targets = np.full_like(ids, NOT_ASKED)
        for row in range(rows):
            tree = ""
            while not self.least <= len(tree) < length:
                tree = self._tree(random, length)
            ids[row, -len(tree) - 1 :] = [self.alphabet.index(each) for each in tree + EQUALS]
            targets[row, -1] = self.alphabet.index(str(self.value(tree)))
        return ids, targets

    def _tree(self, random: np.random.Generator, most: int) -> str:
        """Draw a list, or give up where it has become longer than `most`."""
        written: list[str] = []
        waiting = [self._list(random, 1)]  # of each open list, what is still to be written
        while waiting and len(written) <= most:
            if not waiting[-1]:
                waiting.pop()
                continue
            piece = waiting[-1].pop()
            if piece == "[":
                waiting.append(self._list(random, len(waiting) + 1))
            else:
                written.append(piece)
        return "".join(written)

    def _list(self, random: np.random.Generator, depth: int) -> list[str]:
        """Draw the tokens of a list from its last to its first; "[" is a list in its place."""
        count = int(random.integers(2, self.arguments + 1))
        leaves = random.random(count) < _LEAF if depth < self.depth else [True] * count
        inside = [_DIGITS[random.integers(10)] if leaf else "[" for leaf in leaves]
        return [CLOSE, *inside, list(OPERATORS)[random.integers(len(OPERATORS))]]
