"""How probable a model finds texts, each after its own beginning: many at once, in memory that no length adds to."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adder.layers import State, map_state
from adder.models import LanguageModel

# So many logits are made at once: 128 MB of them in float32.
LOGITS_AT_ONCE = 2**25

Ids = Sequence[int]
_Item = TypeVar("_Item")


class Score(NamedTuple):
    """The natural logarithm of a continuation's probability, and whether each of its tokens is the most probable."""

    log_probability: float
    greedy: bool


@torch.no_grad()
def scores(
    model: LanguageModel, pairs: Sequence[tuple[Ids, Ids]], batch_size: int
) -> Iterator[tuple[int, Score]]:
    """Yield the number of a pair (context, continuation) and its score, for every pair, in any order.

    A context that several pairs share is read once: its state serves them all. Rows are read in batches of
    `batch_size`, long ones in pieces; neither changes a number but by rounding.

    Args:
        pairs: ids; a context has at least one.
    """
    sharing: dict[tuple[int, ...], list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        sharing.setdefault(tuple(context), []).append(i)
    contexts = sorted(sharing, key=len, reverse=True)
    for batch in _batches(contexts, batch_size):
        logits, state = read(model, batch)
        rows = [(k, i) for k, context in enumerate(batch) for i in sharing[context]]
        for some in _rows_at_once(model, pairs, rows, batch_size):
            at = torch.tensor([k for k, _ in some], device=logits.device)
            targets = [pairs[i][1] for _, i in some]
            found = _follow(model, logits[at], select(state, at), targets)
            yield from zip((i for _, i in some), found, strict=True)


def read(model: LanguageModel, texts: Sequence[Ids]) -> tuple[Tensor, State]:
    """Return the logits (b v) and the state after each text."""
    device = model.backbone.norm_f.weight.device
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in texts], device=device)
    mask = torch.tensor(
        [[0] * (longest - len(each)) + [1] * len(each) for each in texts], device=device
    )
    out = model(ids, mask, state=model.initial_state(len(texts)), logits_to_keep=1)
    assert out.state is not None
    return out.logits[:, 0], out.state


def select(state: State, rows: Tensor) -> State:
    """Return the states of these rows of a batch."""
    return map_state(lambda each: each.index_select(0, rows), state)


def _rows_at_once(
    model: LanguageModel,
    pairs: Sequence[tuple[Ids, Ids]],
    rows: list[tuple[int, int]],
    batch_size: int,
) -> Iterator[list[tuple[int, int]]]:
    """Yield rows in batches, those of like length together."""

    def length(row: tuple[int, int]) -> int:
        return len(pairs[row[1]][1])

    rows = sorted(rows, key=length, reverse=True)
    if model.config.dt_limit[0] > 0:  # padding after a state would change it
        for _, same in groupby(rows, length):
            yield from _batches(list(same), batch_size)
    else:
        yield from _batches(rows, batch_size)


def _batches(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _follow(
    model: LanguageModel, logits: Tensor, state: State, targets: Sequence[Ids]
) -> list[Score]:
    """Score the rows of `targets`, of which `logits` (b v) and `state` are what comes before."""
    device, (rows, vocab_size) = logits.device, logits.shape
    ids = pad_sequence(
        [torch.tensor(each, dtype=torch.int64) for each in targets], batch_first=True
    )
    ones = [torch.ones(len(each), dtype=torch.int64) for each in targets]
    ids, mask = ids.to(device), pad_sequence(ones, batch_first=True).to(device)
    total = torch.zeros(rows, dtype=torch.float64, device=device)
    greedy = torch.ones(rows, dtype=torch.bool, device=device)
    piece, length = max(1, LOGITS_AT_ONCE // (rows * vocab_size)), ids.shape[1]
    for start in range(0, length, piece):
        now, real = ids[:, start : start + piece], mask[:, start : start + piece]
        # Nobody asks what comes after the last token of all.
        keep = now.shape[1] - (start + piece >= length)
        before = logits[:, None]
        if keep:
            out = model(now[:, :keep], real[:, :keep], state=state)
            assert out.state is not None
            state, logits = out.state, out.logits[:, -1]
            before = torch.cat([before, out.logits], dim=1)[:, : now.shape[1]]
        wide = before if before.dtype == torch.float64 else before.float()
        of_now = wide.log_softmax(-1).gather(2, now[:, :, None])[:, :, 0]
        total += of_now.masked_fill(real == 0, 0).sum(1, dtype=torch.float64)
        greedy &= ((before.argmax(-1) == now) | (real == 0)).all(1)
    return [Score(*each) for each in zip(total.tolist(), greedy.tolist(), strict=True)]
