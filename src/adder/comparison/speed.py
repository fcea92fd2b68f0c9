"""How long a model takes to learn from a length, and to write a token after a context."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from adder.benchmark.timing import median_seconds
from adder.comparison.quality import OutOfTime
from adder.layers.state import State, flatten_state
from adder.models import LanguageModel
from adder.models.decoder import Decoder

READ_AT_ONCE = 512
_ENOUGH, _MORE = 2.0, 3  # seconds: after a step below it, so many more are measured
_ENOUGH_OF_TOKENS, _MOST_TOKENS = 0.25, 5000  # seconds: short tokens are written more often


def training_times(
    model: LanguageModel, lengths: Sequence[int], *, limit: float, deadline: float, seed: int = 0
) -> Iterator[tuple[int, float]]:
    """Yield (length, seconds of forward and backward of one row) for rising lengths.

    Raises:
        OutOfTime: the step of a length took longer than `limit` seconds, or the next would pass the deadline
            (of time.monotonic), taking its steps to cost what theory says of the last.
    """
    device = next(model.parameters()).device
    model.train()
    random = torch.Generator().manual_seed(seed)
    power = 2 if model.config.layer == "transformer" else 1
    before, last = 0, 0.0
    for length in lengths:
        expected = _spent(last * (length / before) ** power) if before else 0.0
        if last > limit:
            raise OutOfTime(f"{length} and more: a step on {before} took {last:.1f} s")
        if time.monotonic() + expected > deadline:
            raise OutOfTime(f"{length} and more: no time left")
        ids = torch.randint(model.config.vocab_size, (1, length), generator=random).to(device)

        def step(ids: torch.Tensor = ids) -> None:
            model.zero_grad(set_to_none=True)
            loss = model(ids, labels=ids).loss
            assert loss is not None
            loss.backward()
            _wait(device)

        if not before:
            step()  # the first of all makes what later ones find ready
        last = _measured(step)
        before = length
        yield length, last
    model.zero_grad(set_to_none=True)


def _measured(step: Callable[[], None]) -> float:
    """The time of a step: of the first where that is long, else the median of more."""
    start = time.perf_counter()
    step()
    once = time.perf_counter() - start
    return once if once > _ENOUGH else median_seconds({"": step}, repeats=_MORE, warm_up=0)[""]


def _spent(step: float) -> float:
    """How long the measurement of a step of so many seconds takes."""
    return step if step > _ENOUGH else (1 + _MORE) * step


@torch.no_grad()
def generation_times(
    model: LanguageModel, contexts: Sequence[int], *, tokens: int, deadline: float, seed: int = 0
) -> Iterator[tuple[int, float, int]]:
    """Yield (context, median seconds of a token after it, bytes of the state) for rising contexts.

    Contexts are read whole, in pieces; each token is written from the state after the context, so a key-value cache
    holds exactly so many tokens.

    Raises:
        OutOfTime: the deadline (of time.monotonic) has come.

    At least `tokens` are written, and more where they are short.
    """
    device = next(model.parameters()).device
    model.eval()
    decoder = Decoder(model)
    random = torch.Generator().manual_seed(seed)
    state, read = model.initial_state(1), 0
    for context in contexts:
        while read < context:
            if time.monotonic() > deadline:
                raise OutOfTime(f"{context} and more: no time left after reading {read} tokens")
            piece = min(READ_AT_ONCE, context - read)
            ids = torch.randint(model.config.vocab_size, (1, piece), generator=random).to(device)
            after = model(ids, state=state, logits_to_keep=1).state
            assert after is not None
            state, read = after, read + piece
        token = torch.randint(model.config.vocab_size, (1,), generator=random).to(device)

        def step(token: torch.Tensor = token, state: State = state) -> None:
            decoder.step(token, state)
            _wait(device)

        once = median_seconds({"": step}, repeats=5, warm_up=2)[""]
        repeats = max(tokens, min(_MOST_TOKENS, int(_ENOUGH_OF_TOKENS / once)))
        yield context, median_seconds({"": step}, repeats=repeats)[""], state_bytes(state)


def state_bytes(state: State) -> int:
    """Return how many bytes the tensors of a state take."""
    return sum(each.numel() * each.element_size() for each in flatten_state(state).values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
