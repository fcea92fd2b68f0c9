"""A model reading or writing one text, as an object."""

import copy
import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adder.data.vocabulary import Vocabulary
from adder.errors import DamagedFile, UsageError
from adder.generation.sealed import load_sealed, save_sealed
from adder.generation.stop import StopText
from adder.layers.state import State, flatten_state, unflatten_state
from adder.models.decoder import Decoder
from adder.models.language_model import LanguageModel
from adder.models.sampling import Sampler

Ids = Sequence[int] | npt.NDArray[np.int64] | Tensor

FORMAT = 1
LOGITS_AT_ONCE = 2**23
LONGEST_PIECE = 2048
CONTEXT_OF_DECODER = 16


@dataclass(frozen=True)
class Reading:
    """Where a stream stands: everything that depends on the tokens read so far.

    It is replaced whole, so that an interrupt between two tokens leaves a stream that is right.
    """

    state: State
    position: int
    logits: Tensor | None  # (v,) after the last token; None before the first
    seen: Tensor  # (v,) bool: which tokens occurred
    recent: tuple[int, ...]  # the last tokens: the context in which the next ones are decoded


class Stream:
    """A model reading or writing one text.

        stream = Stream(model, vocabulary)
        stream.feed("To be, or not")
        for piece in stream.generate(200, temperature=0.8):
            print(piece, end="", flush=True)

    Whatever is read, in whichever pieces, the stream then stands after the last token: the state
    and the logits there are all it keeps, so the cost of a token does not grow with the text. Any
    cutting of a text into pieces gives the same logits but for rounding: in float32 they agree
    within 1e-4 of the largest logit, in float64 within 1e-10 (`docs/numerics.md`).

    A stream never changes the model. If the weights change, begin a new stream.

    Args:
        model: a language model; it is used as it is (call `model.eval()` where that matters).
        vocabulary: needed to feed or make text; without it a stream speaks ids.
    """

    def __init__(self, model: LanguageModel, vocabulary: Vocabulary | None = None) -> None:
        vocab_size = model.config.vocab_size
        if vocabulary is not None and vocabulary.size != vocab_size:
            raise UsageError(
                f"the vocabulary has {vocabulary.size} tokens and the model {vocab_size}: "
                f"they do not belong together"
            )
        self.model = model
        self.vocabulary = vocabulary
        self._device = next(model.parameters()).device
        self._reading = Reading(
            state=model.initial_state(1),
            position=0,
            logits=None,
            seen=torch.zeros(vocab_size, dtype=torch.bool, device=self._device),
            recent=(),
        )

    @property
    def position(self) -> int:
        """How many tokens were read, those that the stream made itself included."""
        return self._reading.position

    @property
    def logits(self) -> Tensor:
        """(v,) after the last token. UsageError before the first."""
        if self._reading.logits is None:
            raise UsageError("the stream has read nothing yet: feed it at least one token first")
        return self._reading.logits

    def feed(self, tokens: Ids | str) -> None:
        """Read ids or a text. A long one is run in pieces, so memory does not grow with it.

        Raises:
            UsageError: an id outside the vocabulary, a character that it lacks, or a text without
                a vocabulary. Nothing was read then.
        """
        for _ in self._read(self._ids(tokens), last_alone=True):
            pass

    def logprobs(self, tokens: Ids | str) -> Tensor:
        """Read ids or a text as `feed` does, and return how likely each token was.

        It advances, so the values of a text are those of its pieces, one after the other. To ask
        without advancing, ask a fork: `stream.fork().logprobs(text)`.

        Returns:
            (l,) float32 natural logarithms, each token given all tokens before it. On the CPU.

        Raises:
            UsageError: as `feed`; or nothing was fed before, so that the first has no context.
        """
        last = self.logits
        ids = self._ids(tokens)
        values = []
        start = 0
        for logits in self._read(ids):
            piece = ids[start : start + len(logits)].to(logits.device)
            predictions = torch.cat([last[None], logits[:-1]]).float().log_softmax(dim=-1)
            values.append(predictions.gather(1, piece[:, None])[:, 0].cpu())
            last = logits[-1]
            start += len(piece)
        return torch.cat(values) if values else torch.empty(0)

    def generate(
        self,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | int | Sequence[str | int] | None = None,
    ) -> Iterator[str] | Iterator[int]:
        """Write, and yield what is written as it is made.

        Each token is read as soon as it is drawn: whenever a piece comes out, the stream stands
        after the token that completed it, and it may be fed, forked, saved or left there.

        After a stop string the stream stands after the token that completed it: the stop string
        was read, though it is not yielded. After a stop id likewise. To go on from before it, fork
        first and feed the fork what was yielded.

        Text that may be the beginning of a stop string comes out when that is decided, at the
        latest when the last token is made. A character of which only some bytes were made comes
        out of the call that makes the rest.

        Args:
            max_new_tokens: how many tokens to make at most; 0 or more.
            temperature, top_k, top_p, min_p, repetition_penalty: see `Sampler`. The penalty
                counts every token read since the stream began.
            seed: any integer. The random number of a token depends on the seed and its position
                alone, so one text written by two calls is the text written by one. `None` draws a
                seed.
            stop: where to stop: strings (these need a vocabulary), ids, or both.

        Yields:
            Pieces of text, never empty; ids where there is no vocabulary.

        Raises:
            UsageError: an argument out of range, or nothing was fed before. At the call itself,
                not when the first piece is asked for.
            AdderError: the model's logits are not finite.
        """
        if max_new_tokens < 0:
            raise UsageError(f"max_new_tokens must be 0 or more; it is {max_new_tokens}")
        sampler = Sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
        )
        stops = [stop] if isinstance(stop, str | int) else list(stop or ())
        stop_strings = [one for one in stops if isinstance(one, str)]
        stop_ids = frozenset(int(one) for one in stops if not isinstance(one, str))
        stop_text = StopText(stop_strings)
        if self.vocabulary is None and stop_strings:
            raise UsageError("stop strings need a vocabulary: give ids, or a stream with one")
        if self._reading.logits is None:
            raise UsageError("the stream has read nothing yet: feed it a prompt first")
        ids = self._make_ids(max_new_tokens, sampler, _seed(seed), stop_ids)
        return ids if self.vocabulary is None else self._make_text(ids, self.vocabulary, stop_text)

    def fork(self) -> "Stream":
        """A second stream that stands at the same place and then goes its own way. Costs nothing:
        what both have read is shared, and never changed in place."""
        return copy.copy(self)

    def save(self, path: str | Path) -> None:
        """Write where the stream stands to one file: safetensors, sealed by a SHA-256.

        The file appears whole or not at all. It holds no weights, but a fingerprint of them.

        Raises:
            UsageError: `path` is a folder or a device.
            OSError: the disk is full, the folder is missing or read-only.
        """
        reading = self._reading
        tensors = {f"state.{name}": part for name, part in flatten_state(reading.state).items()}
        tensors["seen"] = reading.seen
        if reading.logits is not None:
            tensors["logits"] = reading.logits
        facts = {
            "format": FORMAT,
            "kind": "stream",
            "model": fingerprint(self.model),
            "position": reading.position,
            "recent": list(reading.recent),
        }
        save_sealed(path, tensors, facts)

    @classmethod
    def load(
        cls, path: str | Path, model: LanguageModel, vocabulary: Vocabulary | None = None
    ) -> "Stream":
        """Continue where a saved stream stood.

        Raises:
            DamagedFile: the file is no saved stream, or was changed or cut.
            UsageError: it was saved by another model: other sizes, or other weights.
            OSError: the file cannot be read.
        """
        tensors, facts = load_sealed(path)
        if facts.get("kind") != "stream":
            raise DamagedFile(f"{path}: holds something else than a stream")
        if facts.get("format") != FORMAT:
            raise UsageError(
                f"{path}: written in format {facts.get('format')}, and this adder reads "
                f"format {FORMAT}"
            )
        if facts["model"] != fingerprint(model):
            raise UsageError(
                f"{path}: saved by another model: its sizes or its weights differ from this one's"
            )
        stream = cls(model, vocabulary)
        flat = {
            name.removeprefix("state."): part.to(stream._device)
            for name, part in tensors.items()
            if name.startswith("state.")
        }
        logits = tensors.get("logits")
        stream._reading = Reading(
            state=unflatten_state(flat, stream._reading.state),
            position=facts["position"],
            logits=None if logits is None else logits.to(stream._device),
            seen=tensors["seen"].to(stream._device),
            recent=tuple(facts["recent"]),
        )
        return stream

    def _ids(self, tokens: Ids | str) -> Tensor:
        """(l,) int64 on the CPU, checked."""
        if isinstance(tokens, str):
            if self.vocabulary is None:
                raise UsageError("this stream has no vocabulary: feed it ids, not text")
            return torch.as_tensor(self.vocabulary.encode(tokens))
        ids = torch.as_tensor(tokens).cpu()
        if ids.numel() == 0:
            return torch.empty(0, dtype=torch.int64)
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise UsageError(
                f"ids must be whole numbers of the shape (l,); "
                f"these are {ids.dtype} of the shape {tuple(ids.shape)}"
            )
        vocab_size = self.model.config.vocab_size
        if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
            raise UsageError(f"id {int(wrong)} is outside the vocabulary of {vocab_size} tokens")
        return ids.to(torch.int64)

    def _read(self, ids: Tensor, last_alone: bool = False) -> Iterator[Tensor]:
        """Read (l,) ids piece by piece; yield the logits (piece, v) of each, or of its last token, after reading it."""
        vocab_size = self.model.config.vocab_size
        longest = LONGEST_PIECE
        if not last_alone:
            longest = max(1, min(longest, LOGITS_AT_ONCE // vocab_size))
        for piece in (ids[i : i + longest] for i in range(0, len(ids), longest)):
            with torch.no_grad():
                output = self.model(
                    piece.to(self._device)[None],
                    state=self._reading.state,
                    logits_to_keep=1 if last_alone else None,
                )
            assert output.state is not None
            # A copy: a view would keep the logits of the whole piece in memory.
            self._advance(piece, output.logits[0, -1].clone(), output.state)
            yield output.logits[0]

    def _advance(self, piece: Tensor, logits: Tensor, state: State) -> None:
        """Stand after `piece`, where the logits (v,) and the state are these."""
        before = self._reading
        recent = (*before.recent, *piece[-CONTEXT_OF_DECODER:].tolist())
        self._reading = replace(
            before,
            state=state,
            position=before.position + len(piece),
            logits=logits,
            seen=before.seen.index_fill(0, piece.to(self._device), True),
            recent=recent[-CONTEXT_OF_DECODER:],
        )

    def _make_ids(
        self, max_new_tokens: int, sampler: Sampler, seed: int, stop_ids: frozenset[int]
    ) -> Iterator[int]:
        """Draw, read and yield ids; a stop id is read and ends it without being yielded."""
        generator, decoder = torch.Generator(), Decoder(self.model)
        for _ in range(max_new_tokens):
            generator.manual_seed(_seed_at(seed, self.position))
            token = sampler.sample(self.logits[None], generator, self._reading.seen[None])
            logits, state = decoder.step(token, self._reading.state)
            self._advance(token, logits[0], state)
            if int(token) in stop_ids:
                return
            yield int(token)

    def _make_text(
        self, ids: Iterator[int], vocabulary: Vocabulary, stop: StopText
    ) -> Iterator[str]:
        decoder = vocabulary.decoder()
        decoder.feed(self._reading.recent)
        for token in ids:
            if text := stop.feed(decoder.feed([token])):
                yield text
            if stop.found is not None:
                return
        if text := stop.finish():
            yield text


def fingerprint(model: LanguageModel) -> str:
    """SHA-256 of a model's sizes and weights: equal exactly where both are."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.hexdigest()


def _seed(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed


def _seed_at(seed: int, position: int) -> int:
    """The seed of one token. PyTorch's CPU generator uses the low 32 bits of a seed, so it is
    hashed: every bit of the seed and the position counts."""
    digest = hashlib.sha256(f"{seed} {position}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
