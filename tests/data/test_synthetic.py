"""Sequences with known answers: what is asked is answered by a plain reading of the row."""

from collections.abc import Callable

import pytest
import torch

from adder.data.listops import ListOps
from adder.data.synthetic import NOT_ASKED, SYNTHETIC, make_synthetic
from adder.errors import UsageError

ROWS = 5


def read(name: str, **options: int) -> list[tuple[str, str]]:
    """Rows and their answers as characters; " " where nothing is asked."""
    source = make_synthetic(name, **options)
    ids, targets = source.batch(ROWS, seed=3, step=7)
    assert ids.dtype == targets.dtype == torch.int64
    assert ids.shape == targets.shape == (ROWS, source.length)
    letters = source.alphabet
    return [
        (
            "".join(letters[i] for i in row),
            "".join(" " if i == NOT_ASKED else letters[i] for i in answers),
        )
        for row, answers in zip(ids.tolist(), targets.tolist(), strict=True)
    ]


def test_copying() -> None:
    for row, answer in read("copying", length=40, tokens=6, symbols=8):
        assert row[6:] == "." * 28 + ">" * 6
        assert answer == " " * 34 + row[:6]
        assert set(row[:6]) <= set("ABCDEFGH")


def test_selective_copying() -> None:
    rows = read("selective-copying", length=40, tokens=6, symbols=8)
    for row, answer in rows:
        assert row[-6:] == ">" * 6
        assert answer == " " * 34 + row.replace(".", "").replace(">", "")
    assert len({tuple(i for i in range(34) if row[i] != ".") for row, _ in rows}) > 1


def test_induction_heads() -> None:
    for row, answer in read("induction-heads", length=30, symbols=15):
        assert row.count(">") == 2
        assert row[-1] == ">"
        assert answer == " " * 29 + row[row.index(">") + 1]


def test_associative_recall() -> None:
    for row, answer in read("mqar", length=60, pairs=6, keys=10, values=9):
        pairs = dict(zip(row[0:12:2], row[1:12:2], strict=True))
        assert len(pairs) == 6
        said = {i: answer[i] for i in range(60) if answer[i] != " "}
        assert sorted(row[i] for i in said) == sorted(pairs)
        assert all(pairs[row[i]] == value for i, value in said.items())
        assert min(said) >= 12
        assert all(row[i] == "." for i in range(12, 60) if i not in said)


def test_parity() -> None:
    for row, answer in read("parity", length=33):
        assert answer == "".join(str(row[: i + 1].count("1") % 2) for i in range(33))


def evaluate(tokens: list[str]) -> int:
    """A tree by recursion: another way than the one that is tested."""
    first = tokens.pop(0)
    if first.isdecimal():
        return int(first)
    values = []
    while tokens[0] != "]":
        values.append(evaluate(tokens))
    tokens.pop(0)
    middle = sorted(values)[(len(values) - 1) // 2] + sorted(values)[len(values) // 2]
    of: dict[str, Callable[[], int]] = {
        "m": lambda: min(values),
        "M": lambda: max(values),
        "d": lambda: middle // 2,
        "s": lambda: sum(values) % 10,
    }
    assert 2 <= len(values) <= 5
    return of[first]()


def test_listops() -> None:
    depths = set()
    for row, answer in read("listops", length=80, least=10, depth=3, arguments=5):
        tree = row.lstrip(".").removesuffix("=")
        assert 10 <= len(tree) < 80
        assert answer == " " * 79 + str(evaluate(list(tree)))
        opened = 0
        for character in tree:
            opened += (character in "mMds") - (character == "]")
            depths.add(opened)
    assert max(depths) == 3
    assert ListOps().value("s23M49]]") == 4
    assert ListOps().value("d1452]") == 3


@pytest.mark.parametrize("name", SYNTHETIC)
def test_rows_hang_on_seed_and_step_alone(name: str) -> None:
    source = make_synthetic(name)
    ids, targets = source.batch(ROWS, 1, 2)
    again = make_synthetic(name).batch(ROWS, 1, 2)
    assert torch.equal(ids, again[0])
    assert torch.equal(targets, again[1])
    assert not torch.equal(ids, source.batch(ROWS, 1, 3)[0])
    assert not torch.equal(ids, source.batch(ROWS, 2, 2)[0])
    assert source.batch(ROWS, 1, 2, source.length + 9)[0].shape[1] == source.length + 9
    assert 0 <= ids.min() <= ids.max() < source.vocab_size
    assert source.vocabulary.characters == source.alphabet
    options = source.to_dict()
    assert make_synthetic(options.pop("name"), **options) == source


def test_many_symbols_are_characters_of_their_own() -> None:
    source = make_synthetic("mqar", keys=4000, values=4000, pairs=100, length=400)
    assert source.vocab_size == 8001
    text = source.vocabulary.decode(source.batch(1, 0, 0)[0][0].numpy())
    assert len(text) == 400


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sorting", {}, "no task sorting: choose one of copying, "),
        ("parity", {"tokens": 3}, "parity has no tokens: it has length"),
        ("copying", {"length": 31}, "copying: length is 31, expected at least 32"),
        ("mqar", {"pairs": 33}, "mqar: pairs is 33, expected 1 to 32"),
        ("listops", {"depth": "two"}, "listops: depth is 'two', expected a whole number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_synthetic(name, **options)
    assert str(caught.value).startswith(message)
