"""How well a model predicts a text, in nats: read as one stream, or in rows side by side."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from adder.data.vocabulary import Ids, Vocabulary
from adder.errors import UsageError
from adder.models.language_model import LanguageModel


@dataclass(frozen=True)
class Evaluation:
    """The summed negative log-likelihood of `tokens` predictions, in nats."""

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per(self, units: float) -> float:
        """Bits for each of `units` bytes or characters that the predicted tokens stand for."""
        return self.nats / math.log(2) / units


def encode_for_evaluation(
    vocabulary: Vocabulary, text: str, name: str, most: int | None = None
) -> tuple[Ids, int]:
    """Return the ids of a text, `most` + 1 at most, and how many bytes all but the first stand for.

    Raises:
        UsageError: there is nothing to predict, or the vocabulary lacks a character.
    """
    ids = vocabulary.encode(text)
    if ids.size < 2:
        raise UsageError(f"{name} is a single token: there is nothing to predict")
    if most is not None and ids.size > most + 1:
        ids = ids[: most + 1]
        text = vocabulary.decode(ids)
    # The first token is read, not predicted.
    size = len(text.encode("utf-8")) - len(vocabulary.decode(ids[:1]).encode("utf-8"))
    return ids, max(1, size)


@torch.no_grad()
def evaluate_text(
    model: LanguageModel, ids: Ids, *, length: int = 2048, rows: int = 1
) -> Evaluation:
    """Read a text whole and sum what every token after the first costs.

    The state is carried from window to window, so the result does not depend on `length`. Not a Transformer's, which
    would grow to hold the whole text: `length` is its context, and each window is read on its own.

    Args:
        ids: the text (n,), n >= 2.
        length: tokens to read at once.
        rows: 1 reads the text as one stream. More are faster: the text is cut in as many equal
            stretches, each read from no state, and up to rows - 1 tokens at its end are left out.
    """
    predictions = ids.size - 1
    if predictions < rows:
        raise UsageError(f"the text has {ids.size} tokens: too few to evaluate {rows} rows")
    device = next(model.parameters()).device
    stretch = predictions // rows
    inputs = torch.from_numpy(ids[: rows * stretch]).view(rows, stretch)
    targets = torch.from_numpy(ids[1 : rows * stretch + 1]).view(rows, stretch)
    training = model.training
    model.eval()
    state, carried = model.initial_state(rows), model.config.layer != "transformer"
    sums = []
    for start in range(0, stretch, length):
        window = slice(start, start + length)
        output = model(inputs[:, window].to(device), state=state)
        state = output.state if carried else state
        wanted = targets[:, window].to(device)
        logits = output.logits.flatten(0, 1).float()
        sums.append(F.cross_entropy(logits, wanted.flatten(), reduction="sum"))
    model.train(training)
    nats = torch.stack(sums).cpu().double().sum().item()
    return Evaluation(nats, rows * stretch)
