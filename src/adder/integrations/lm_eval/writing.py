"""What a model writes after many texts at once, each up to its own end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adder.data.vocabulary import Vocabulary
from adder.errors import UsageError
from adder.generation.stop import StopText
from adder.integrations.lm_eval.scoring import Ids, read, select
from adder.models import LanguageModel
from adder.models.decoder import Decoder
from adder.models.sampling import Sampler

# The harness has many names for one thing; the first that is given counts.
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_CONTEXT = (
    16  # tokens before the first that is written: tokenizers treat a text's first token apart
)


@dataclass(frozen=True)
class Rules:
    """How tokens are chosen, how many at most, and before which texts a row ends."""

    sampler: Sampler
    longest: int
    until: tuple[str, ...]

    @classmethod
    def of(cls, asked: dict[str, Any], longest: int) -> "Rules":
        """Read the generation_kwargs of a task: greedy unless do_sample or a temperature says otherwise.

        Raises:
            UsageError: it asks for something else, or a value is out of range; the message names it.
        """
        rest = dict(asked)
        until = rest.pop("until", None) or ()
        until = (until,) if isinstance(until, str) else tuple(until)
        lengths = [int(rest.pop(name)) for name in _LENGTHS if rest.get(name) is not None]
        temperature, sampled = rest.pop("temperature", None), rest.pop("do_sample", None)
        if sampled is False or temperature is None:
            temperature = 1.0 if sampled else 0.0
        sampling = {name: rest.pop(name, None) for name in _SAMPLING}
        sampling["top_k"] = sampling["top_k"] or None  # 0 is none to others
        sampling["repetition_penalty"] = sampling["repetition_penalty"] or 1.0
        if unknown := [name for name, value in rest.items() if value is not None]:
            raise UsageError(
                f"generate_until: {unknown[0]} is {rest[unknown[0]]!r}, and adder has no such option"
            )
        longest = lengths[0] if lengths else longest
        if longest < 0:
            raise UsageError(f"generate_until: {_LENGTHS[0]} is {longest}, expected at least 0")
        return cls(
            Sampler(float(temperature), **sampling), longest, tuple(each for each in until if each)
        )


class _Row:
    """One text that is being written."""

    def __init__(self, vocabulary: Vocabulary, context: Ids, rules: Rules, seed: int):
        self.decoder, self.stop = vocabulary.decoder(), StopText(rules.until)
        self.decoder.feed(context[-_CONTEXT:])
        self.generator = torch.Generator().manual_seed(seed)
        self.text = ""

    def take(self, token: int) -> bool:
        """Add a token; return whether the text goes on."""
        self.text += self.stop.feed(self.decoder.feed([token]))
        return self.stop.found is None

    def finish(self) -> str:
        if self.stop.found is None:
            self.text += self.stop.feed(self.decoder.finish()) + self.stop.finish()
        return self.text


@torch.no_grad()
def write(
    model: LanguageModel,
    vocabulary: Vocabulary,
    contexts: Sequence[Ids],
    rules: Rules,
    ends: frozenset[int],
    seeds: Sequence[int],
) -> list[str]:
    """Return what follows each context, without what ended it: a token of `ends`, or a text of `rules.until`.

    A row is what it would be alone, but for rounding; what it draws depends on its seed only.
    """
    rows = [
        _Row(vocabulary, *each)
        for each in zip(contexts, [rules] * len(contexts), seeds, strict=True)
    ]
    running, decoder, spare = list(rows), Decoder(model), None
    logits, state = read(model, contexts)
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for row, context in zip(seen, contexts, strict=True):
        row[torch.tensor(context, device=seen.device)] = True
    for made in range(rules.longest):
        tokens = rules.sampler.sample(logits, [row.generator for row in running], seen)
        goes_on = [
            token not in ends and row.take(token)
            for row, token in zip(running, tokens.tolist(), strict=True)
        ]
        if not any(goes_on) or made + 1 == rules.longest:
            break
        if not all(goes_on):
            kept = torch.tensor(goes_on, device=tokens.device).nonzero()[:, 0]
            running = [running[i] for i in kept.tolist()]
            tokens, seen, state, spare = tokens[kept], seen[kept], select(state, kept), None
        seen.scatter_(1, tokens[:, None], True)
        logits, after = decoder.step(tokens, state, spare)
        state, spare = after, state
    return [row.finish() for row in rows]
