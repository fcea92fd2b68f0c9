"""Which tokens of a model begin and end a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adder.data.vocabulary import Vocabulary
from adder.errors import UsageError
from adder.models.checkpoint import CONFIG, read_json

_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class SpecialTokens:
    """The token before a text that has nothing before it, and the one that ends what is written; None where unknown."""

    prefix: int | None
    end: int | None

    @classmethod
    def find(
        cls, folder: Path | None, vocabulary: Vocabulary, prefix: str | None, end: str | None
    ) -> "SpecialTokens":
        """Return those that are given as text, or else those that a model's folder names.

        Raises:
            UsageError: a text that is given is not one token.
            DamagedFile: a file in the folder is no JSON object.
        """
        begins, ends = (_named(folder, vocabulary, name) for name in ("bos_token", "eos_token"))
        if begins is None:
            begins = ends  # as the harness does
        return cls(
            begins if prefix is None else _one_token(vocabulary, "prefix", prefix),
            ends if end is None else _one_token(vocabulary, "eot", end),
        )


def _named(folder: Path | None, vocabulary: Vocabulary, name: str) -> int | None:
    if folder is None:
        return None
    if (folder / _TOKENIZER_CONFIG).is_file():
        token = read_json(folder / _TOKENIZER_CONFIG).get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            return _one_token(vocabulary, name, text)
    described: dict[str, Any] = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    given = described.get(f"{name}_id")
    given = given[0] if isinstance(given, list) and given else given
    return given if isinstance(given, int) and 0 <= given < vocabulary.size else None


def _one_token(vocabulary: Vocabulary, name: str, text: str) -> int:
    ids = vocabulary.encode(text).tolist()
    if len(ids) != 1:
        raise UsageError(f"AdderLM: {name} is {text!r}, which is {len(ids)} tokens, expected one")
    return int(ids[0])
