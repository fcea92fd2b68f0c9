"""The model class of lm-evaluation-harness over a LanguageModel."""

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from adder.data.vocabulary import Vocabulary
from adder.errors import AdderError, UsageError
from adder.integrations.lm_eval.scoring import scores
from adder.integrations.lm_eval.special import SpecialTokens
from adder.integrations.lm_eval.writing import Rules, write
from adder.models import LanguageModel
from adder.training.device import choose_device
from adder.training.opened import open_model

Pair = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("adder")
class AdderLM(TemplateLM):  # type: ignore[misc]
    """A language model of adder, or one of the formats it reads, in lm-evaluation-harness.

    A text of any length is read whole, piece by piece, with the state carried on: there is no window, nothing is cut
    off, and memory does not grow. A context that several answers share is read once.

    Args:
        pretrained: a model's folder, a run's, or a name on the Hub, with its vocabulary in it; or a LanguageModel.
        vocabulary: of a LanguageModel that is given as one.
        batch_size: rows that are read or written at once. It changes no number but by rounding.
        device: "auto", "cpu", "cuda", ...; "cuda:0", which the harness asks for unasked, is "auto" without CUDA.
        dtype: "float32", "bfloat16" or "float64".
        peft: the folder of an adapter, which is merged.
        prefix: one token, as text, that stands before a text that has nothing before it. The default is what the
            model's tokenizer_config.json or config.json calls bos_token, or else eos_token.
        eot: one token, as text, that ends what is written. The default is eos_token.
        add_bos_token: put the prefix before every text.
        max_gen_toks: tokens that are written at most, where a task does not say.
        seed: of what is drawn; a row's numbers depend on it and on the row's text.

    Raises:
        UsageError: there is no such model or vocabulary, or an argument is not of its kind.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        vocabulary: Vocabulary | None = None,
        *,
        batch_size: int | str = 1,
        device: str = "auto",
        dtype: str | None = None,
        peft: str | None = None,
        prefix: str | None = None,
        eot: str | None = None,
        add_bos_token: bool = False,
        max_gen_toks: int = 256,
        seed: int = 1234,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UsageError(
                f"AdderLM: batch_size is {batch_size!r}, expected a whole number of at least 1"
            )
        self.batch_size, self.max_gen_toks, self.seed = int(batch_size), max_gen_toks, seed
        model, self.vocabulary, folder = _model_of(pretrained, vocabulary)
        if peft is not None:
            model = _adapted(model, peft)
        if device == "cuda:0" and not torch.cuda.is_available():
            device = "auto"
        self._device = choose_device(device)
        self.model = model.to(self._device, _dtype(dtype)).eval()
        self.special = SpecialTokens.find(folder, self.vocabulary, prefix, eot)
        self.add_bos_token = add_bos_token

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends what is written; None where there is none."""
        return self.special.end

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it."""
        if self.special.prefix is None:
            raise UsageError(
                "AdderLM: this task scores a text from its first token on, and the model names no token to stand "
                "before it: give one as prefix, such as prefix=\\n"
            )
        return self.special.prefix

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Return the ids of a text, behind the prefix where add_bos_token says so."""
        ids: list[int] = self.vocabulary.encode(string).tolist()
        if (
            self.add_bos_token
            and add_special_tokens is not False
            and ids[:1] != [self.prefix_token_id]
        ):
            ids.insert(0, self.prefix_token_id)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        pairs = [(context or [self.prefix_token_id], rest) for _, context, rest in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        progress = tqdm(total=len(pairs), disable=disable_tqdm, desc="loglikelihood")
        for i, score in scores(self.model, pairs, self.batch_size):
            found[i] = (score.log_probability, score.greedy)
            if (key := requests[i][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", key, found[i])
            progress.update()
        progress.close()
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each whole text, every token given all those before it."""
        texts = [each.args[0] for each in requests]
        prefix = [self.prefix_token_id]
        whole = [(None, prefix, self.tok_encode(text, add_special_tokens=False)) for text in texts]
        found = [score for score, _ in self._loglikelihood_tokens(whole, disable_tqdm)]
        for text, score in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), score)
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to and without the first of its `until`."""
        by_rules: dict[str, list[int]] = {}
        seeds, asked = [], Counter[str]()
        for i, each in enumerate(requests):
            by_rules.setdefault(json.dumps(each.args[1], sort_keys=True), []).append(i)
            # Of its text and how often that was asked for before, not of where it stands in a batch.
            seeds.append(_seed(self.seed, asked[each.args[0]], each.args[0]))
            asked[each.args[0]] += 1
        ends = frozenset() if self.special.end is None else frozenset([self.special.end])
        found = [""] * len(requests)
        progress = tqdm(total=len(requests), disable=disable_tqdm, desc="generate_until")
        for alike in by_rules.values():
            rules = Rules.of(requests[alike[0]].args[1], self.max_gen_toks)
            contexts = {i: self.tok_encode(requests[i].args[0]) for i in alike}
            contexts = {i: ids or [self.prefix_token_id] for i, ids in contexts.items()}
            alike = sorted(alike, key=lambda i: -len(contexts[i]))
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                given = [contexts[i] for i in batch]
                of_rows = [seeds[i] for i in batch]
                texts = write(self.model, self.vocabulary, given, rules, ends, of_rows)
                for i, text in zip(batch, texts, strict=True):
                    found[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                progress.update(len(batch))
        progress.close()
        return found


def _model_of(
    pretrained: str | LanguageModel, vocabulary: Vocabulary | None
) -> tuple[LanguageModel, Vocabulary, Path | None]:
    if isinstance(pretrained, str | Path):
        if vocabulary is not None:
            raise UsageError(
                "AdderLM: a folder has its own vocabulary: give a LanguageModel beside another"
            )
        opened = open_model(Path(pretrained))
        return *opened.reader(), opened.path
    if vocabulary is None:
        raise UsageError(
            "AdderLM: a LanguageModel reads text through a vocabulary: give one beside it"
        )
    if vocabulary.size != pretrained.config.vocab_size:
        raise UsageError(
            f"AdderLM: the vocabulary has {vocabulary.size} tokens, and the model {pretrained.config.vocab_size}"
        )
    return pretrained, vocabulary, None


def _adapted(model: LanguageModel, folder: str) -> LanguageModel:
    if importlib.util.find_spec("peft") is None:
        raise AdderError("AdderLM: an adapter needs PEFT: pip install peft")
    from peft import PeftModel

    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    assert isinstance(merged, LanguageModel)
    return merged


def _seed(*facts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:4], "little")


def _dtype(name: str | None) -> torch.dtype | None:
    dtype = None if name is None else getattr(torch, name, None)
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"AdderLM: dtype is {name!r}, expected float32, bfloat16 or float64")
    return dtype
