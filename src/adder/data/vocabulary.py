"""Between text and token ids: characters, bytes, or a tokenizer of the `tokenizers` library."""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from adder.errors import AdderError, DamagedFile, UsageError

Ids = npt.NDArray[np.int64]

VOCABULARY = "vocabulary.json"  # in the folder of a language model that reads text
TOKENIZER = "tokenizer.json"  # in one of Hugging Face's
_HELD_TOKENS = 16  # longer than any character's bytes: what is still incomplete then is invalid


class Decoder(ABC):
    """Turns ids into text as they come: only complete characters come out."""

    @abstractmethod
    def feed(self, ids: Iterable[int]) -> str:
        """Take ids; return the text that they complete, which may be empty."""

    @abstractmethod
    def finish(self) -> str:
        """Return what is left, with U+FFFD in place of an incomplete character."""


class Vocabulary(ABC):
    """The set of tokens of a model, and the map between a text and its ids, both ways."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """One more than the largest id."""

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids (l,) of a text. UsageError names the characters that the vocabulary lacks."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids. UsageError for an id outside the vocabulary."""

    @abstractmethod
    def decoder(self) -> Decoder:
        """A fresh decoder for ids that come one after the other."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` makes the same vocabulary of; holds JSON values only."""

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Vocabulary":
        """Make the vocabulary that `to_dict` described; UsageError where nothing fits."""
        kind = values.get("kind")
        if kind == Characters.kind and isinstance(values.get("characters"), str):
            return Characters(values["characters"])
        if kind == Bytes.kind:
            return Bytes()
        if kind == Tokens.kind and isinstance(values.get("tokenizer"), str):
            return Tokens(values["tokenizer"])
        raise UsageError(f"no vocabulary of the kind {kind!r} is described here")

    def to_json(self) -> str:
        return json.dumps({"format": 1, **self.to_dict()}, ensure_ascii=True, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, name: str) -> "Vocabulary":
        """Read what `to_json` wrote; `name` is the file that errors name."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or values.get("format") != 1:
                raise DamagedFile(f"{name} is no vocabulary that this version of adder can read")
            return Vocabulary.from_dict(values)
        except (UsageError, ValueError, RecursionError) as error:
            raise DamagedFile(f"{name} is damaged: {error}") from None

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> "Vocabulary":
        """Read a vocabulary.json; DamagedFile where it is not what `save` wrote."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DamagedFile(f"{path} is damaged: it is not UTF-8 text") from None
        except OSError as error:
            raise AdderError(f"cannot read {path}: {error.strerror or error}") from None
        return Vocabulary.from_json(text, str(path))

    def _check(self, ids: Sequence[int] | Ids) -> Ids:
        checked = np.asarray(ids, dtype=np.int64).reshape(-1)
        if checked.size and (checked.min() < 0 or checked.max() >= self.size):
            wrong = checked[(checked < 0) | (checked >= self.size)][0]
            raise UsageError(f"id {wrong} is outside the vocabulary of {self.size} tokens")
        return checked


class Characters(Vocabulary):
    """One id for each distinct character, in the order of their code points."""

    kind = "characters"

    def __init__(self, characters: str) -> None:
        """`characters` is any text: its distinct characters make the vocabulary."""
        points = np.unique(_code_points(characters))
        if points.size == 0:
            raise UsageError("a vocabulary of characters needs at least one character")
        self._points = points
        self._id_of_point = np.full(int(points[-1]) + 1, -1, dtype=np.int64)
        self._id_of_point[points] = np.arange(points.size)

    @property
    def size(self) -> int:
        return int(self._points.size)

    @property
    def characters(self) -> str:
        return self.decode(np.arange(self.size))

    def encode(self, text: str) -> Ids:
        points = _code_points(text)
        known = points < self._id_of_point.size
        ids = np.where(known, self._id_of_point[np.where(known, points, 0)], -1)
        unknown = np.unique(points[ids < 0])
        if unknown.size:
            _refuse_unknown([chr(point) for point in unknown])
        return ids

    def decode(self, ids: Sequence[int] | Ids) -> str:
        points = self._points[self._check(ids)].astype("<u4")
        return points.tobytes().decode("utf-32-le", errors="surrogatepass")

    def decoder(self) -> Decoder:
        return _CharacterDecoder(self)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "characters": self.characters}


class Bytes(Vocabulary):
    """The 256 bytes of UTF-8: it has every text."""

    kind = "bytes"

    @property
    def size(self) -> int:
        return 256

    def encode(self, text: str) -> Ids:
        data = text.encode("utf-8", errors="surrogateescape")
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        return self._check(ids).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def decoder(self) -> Decoder:
        return _ByteDecoder(self)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Tokens(Vocabulary):
    """The tokens of a `tokenizers` JSON file, which is embedded whole."""

    kind = "tokens"

    def __init__(self, description: str) -> None:
        """`description` is the text of a tokenizer.json file."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise AdderError(
                'this vocabulary needs the tokenizers library: pip install "adder-ssm[train]"'
            ) from None
        try:
            self._tokenizer = Tokenizer.from_str(description)
        except Exception as error:  # the library raises bare Exception
            raise UsageError(f"no tokenizer can be made of this description: {error}") from None
        self._description = description
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise UsageError("this tokenizer has no tokens")
        self._size = max(ids) + 1
        model = json.loads(description)["model"]
        unknown = model.get("unk_token")
        self._unknown = model.get("unk_id")
        if unknown is not None:
            self._unknown = self._tokenizer.token_to_id(unknown)

    @property
    def size(self) -> int:
        return self._size

    def encode(self, text: str) -> Ids:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            _refuse_unknown([text[error.start]])
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int64)
        if self._unknown is not None:
            places = np.flatnonzero(ids == self._unknown)
            offsets = encoding.offsets if places.size else []
            pieces = {text[slice(*offsets[place])] for place in places}
            if lacking := pieces - {self._tokenizer.id_to_token(self._unknown)}:
                _refuse_unknown(sorted(lacking))
        # Some tokenizers drop what they do not know without a word.
        if dropped := sorted(c for c in set(text) if not c.isspace() and self._drops(c)):
            _refuse_unknown(dropped)
        return ids

    def _drops(self, character: str) -> bool:
        return not self._tokenizer.encode(character, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int] | Ids) -> str:
        checked = self._check(ids).tolist()
        return str(self._tokenizer.decode(checked, skip_special_tokens=False))

    def decoder(self) -> Decoder:
        return _TokenDecoder(self)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer": self._description}


def find_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary in a model's folder: adder's vocabulary.json, or a tokenizer.json; None where there is none.

    Raises:
        DamagedFile: it is not what it should be.
    """
    if (folder / VOCABULARY).exists():
        return Vocabulary.load(folder / VOCABULARY)
    file = folder / TOKENIZER
    if not file.exists():
        return None
    try:
        return Tokens(file.read_text(encoding="utf-8"))
    except (UsageError, UnicodeDecodeError, KeyError) as error:
        raise DamagedFile(f"{file} is damaged: {error}") from None


def make_vocabulary(name: str, text: str) -> Vocabulary:
    """The vocabulary that a name asks for.

    Args:
        name: "characters" (those of `text`), "bytes", or the path of a tokenizers JSON file.
    """
    if name == Characters.kind:
        return Characters(text)
    if name == Bytes.kind:
        return Bytes()
    try:
        return Tokens(Path(name).read_text(encoding="utf-8"))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is no tokenizer: it is not UTF-8 text") from None
    except FileNotFoundError:
        raise UsageError(
            f'no vocabulary {name}: give "characters", "bytes" or the path of a tokenizer.json'
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read the vocabulary {name}: {error.strerror or error}") from None


class _CharacterDecoder(Decoder):
    def __init__(self, vocabulary: Characters) -> None:
        self._vocabulary = vocabulary

    def feed(self, ids: Iterable[int]) -> str:
        return self._vocabulary.decode(list(ids))

    def finish(self) -> str:
        return ""


class _ByteDecoder(Decoder):
    def __init__(self, vocabulary: Bytes) -> None:
        self._vocabulary = vocabulary
        self._codec = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        return self._codec.decode(self._vocabulary._check(list(ids)).astype(np.uint8).tobytes())

    def finish(self) -> str:
        return self._codec.decode(b"", final=True)


class _TokenDecoder(Decoder):
    """Decodes with the tokens before as context: tokenizers treat a text's first token apart."""

    def __init__(self, vocabulary: Tokens) -> None:
        self._vocabulary = vocabulary
        self._context: list[int] = []
        self._held: list[int] = []

    def feed(self, ids: Iterable[int]) -> str:
        return "".join(self._feed_one(int(i)) for i in ids)

    def finish(self) -> str:
        text = self._text_of_held()
        self._context, self._held = [], []
        return text

    def _feed_one(self, token: int) -> str:
        self._held.append(token)
        text = self._text_of_held()
        if text.endswith("\ufffd") and len(self._held) < _HELD_TOKENS:
            return ""
        self._context, self._held = self._held, []
        return text

    def _text_of_held(self) -> str:
        before = self._vocabulary.decode(self._context)
        return self._vocabulary.decode(self._context + self._held)[len(before) :]


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _refuse_unknown(unknown: list[str]) -> None:
    shown = " ".join(repr(piece) for piece in unknown[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    raise UsageError(f"the vocabulary lacks these characters of the text: {shown}{more}")
