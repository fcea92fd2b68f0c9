"""What a language model writes after a prompt: drawn token by token, or found by a beam search."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from adder.errors import UsageError
from adder.layers import State, map_state
from adder.models.decoder import Decoder
from adder.models.padding import Padding
from adder.models.sampling import Sampler

if TYPE_CHECKING:
    from adder.models.language_model import LanguageModel

_NEVER = -1e9  # a log-probability below every other; -inf - -inf would be NaN


@torch.no_grad()
def write(
    model: "LanguageModel",
    input_ids: Tensor,
    max_new_tokens: int,
    attention_mask: Tensor | None,
    sampler: Sampler,
    seed: int | None,
    stop: int | None,
) -> Tensor:
    """Return input_ids with up to `max_new_tokens` more in each row; one that has made `stop` is filled up with it."""
    generator = torch.Generator(input_ids.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    seen, ids = _seen(input_ids, attention_mask), input_ids
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    state = model.initial_state(len(ids))
    decoder, spare = Decoder(model), None
    for made in range(max_new_tokens):
        if made == 0:
            logits, after = _read(model, ids, attention_mask, state)
        else:
            logits, after = decoder.step(ids[:, -1], state, spare)
            spare = state
        state = after
        chosen = sampler.sample(logits, generator, seen)
        if stop is not None:
            chosen = chosen.masked_fill(done, stop)
            done |= chosen == stop
        seen, ids = (torch.cat([each, chosen.unsqueeze(1)], dim=1) for each in (seen, ids))
        if bool(done.all()):
            break
    return ids


@torch.no_grad()
def beam_search(
    model: "LanguageModel",
    input_ids: Tensor,
    max_new_tokens: int,
    attention_mask: Tensor | None,
    beams: int,
    length_penalty: float,
    stop: int | None,
) -> Tensor:
    """Return input_ids and, for each row, the best of the continuations that were kept.

    The beams with the largest sum of log-probabilities go on. One is complete at `stop` or after `max_new_tokens`; of
    the complete ones the one with the largest sum / length ** length_penalty is returned, filled up with `stop`. The
    search ends once no running beam of a row could become better than its `beams` complete ones.

    Raises:
        UsageError: beams is below 1, or there is one token only.
    """
    b, v = len(input_ids), model.config.vocab_size
    if beams < 1 or v < 2:
        raise UsageError(
            f"generate: num_beams is {beams}, expected at least 1, and a vocabulary of at least 2 tokens; it has {v}"
        )
    if max_new_tokens == 0:
        return input_ids
    device = input_ids.device
    _seen(input_ids, attention_mask)  # refuses a row without a token
    logits, state = _read(model, input_ids, attention_mask, model.initial_state(b))
    # All beams of a row are alike at first: only one of them counts.
    state = map_state(lambda each: each.repeat_interleave(beams, 0), state)
    logits = logits.repeat_interleave(beams, 0)
    running = torch.full((b, beams), _NEVER, device=device)
    running[:, 0] = 0
    made = input_ids.new_zeros(b, beams, 0)
    fill = 0 if stop is None else stop
    best = torch.full((b, beams), _NEVER, device=device)
    complete = input_ids.new_full((b, beams, max_new_tokens), fill)
    decoder = Decoder(model)
    for length in range(1, max_new_tokens + 1):
        scores = F.log_softmax(logits.float(), -1).view(b, beams, v) + running[:, :, None]
        # So many that the beams go on even where each of them meets `stop`.
        top, at = scores.flatten(1).topk(2 * beams)
        beam, token = at // v, at % v
        longer = made.gather(1, beam[:, :, None].expand(-1, -1, length - 1))
        longer = torch.cat([longer, token[:, :, None]], dim=2)
        ends = torch.zeros_like(token, dtype=torch.bool) if stop is None else token == stop
        if length == max_new_tokens:
            ends = torch.ones_like(ends)
        # A complete beam counts where it is one of the best `beams`, as it would if it ran on.
        among = torch.arange(2 * beams, device=device) < beams
        ended = (top / length**length_penalty).masked_fill(~(ends & among), _NEVER)
        padded = F.pad(longer, (0, max_new_tokens - length), value=fill)
        best, kept = torch.cat([best, ended], 1).topk(beams)
        complete = torch.cat([complete, padded], 1).gather(
            1, kept[:, :, None].expand(-1, -1, max_new_tokens)
        )
        running, kept = top.masked_fill(ends, _NEVER).topk(beams)
        if length == max_new_tokens or not _may_improve(running, best, length, length_penalty):
            break
        made = longer.gather(1, kept[:, :, None].expand(-1, -1, length))
        rows = (beam.gather(1, kept) + beams * torch.arange(b, device=device)[:, None]).flatten()
        state = map_state(partial(torch.index_select, dim=0, index=rows), state)
        logits, state = decoder.step(made[:, :, -1].flatten(), state)
    chosen = complete[:, 0]
    if stop is not None:
        ends = (chosen == stop).int().cumsum(1) > 0
        chosen = chosen[
            :, : int((~ends).sum(1).max()) + 1
        ]  # up to the first `stop` of the longest row
    return torch.cat([input_ids, chosen], dim=1)


def _may_improve(running: Tensor, best: Tensor, length: int, penalty: float) -> bool:
    """Whether some row's best running beam, ended now, would be better than the worst of its complete ones."""
    return bool((running[:, 0] / length**penalty > best[:, -1]).any())


def _read(
    model: "LanguageModel", ids: Tensor, mask: Tensor | None, state: State
) -> tuple[Tensor, State]:
    read = model(ids, mask, state=state, logits_to_keep=1)
    assert read.state is not None
    return read.logits[:, 0], read.state


def _seen(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the ids with padding replaced by a token of its row, for what looks at which tokens there were."""
    padding = Padding.of(mask, input_ids)
    if padding is None:
        return input_ids
    if bool((padding.count == input_ids.shape[1]).any()):
        raise UsageError("generate: a row of attention_mask has no token to go on from")
    return padding.ids(input_ids)
