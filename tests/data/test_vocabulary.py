import json

import numpy as np
import pytest

from adder.data.vocabulary import Bytes, Characters, Tokens, Vocabulary, make_vocabulary
from adder.errors import DamagedFile, UsageError

TEXT = "To be, or not: größe, 日本, 🐍!"


def tokenizer_json() -> str:
    """A byte-level tokenizer with a few merges: most characters above ASCII need several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["to be or not to be that is the question"] * 10, trainer)
    return tokenizer.to_str()


def word_tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "to": 1, "be": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


VOCABULARIES = [lambda: Characters(TEXT), Bytes, lambda: Tokens(tokenizer_json())]


@pytest.fixture(params=VOCABULARIES, ids=["characters", "bytes", "tokens"])
def vocabulary(request) -> Vocabulary:
    return request.param()


def test_decode_undoes_encode(vocabulary):
    ids = vocabulary.encode(TEXT)
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < vocabulary.size
    assert vocabulary.decode(ids) == TEXT
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""


def test_decoder_gives_the_same_text_one_id_at_a_time(vocabulary):
    decoder = vocabulary.decoder()
    pieces = [decoder.feed([token]) for token in vocabulary.encode(TEXT)]
    assert "".join(pieces) + decoder.finish() == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("make", VOCABULARIES[1:], ids=["bytes", "tokens"])
def test_decoder_replaces_a_character_that_is_cut_off(make):
    vocabulary = make()
    decoder = vocabulary.decoder()
    assert decoder.feed(vocabulary.encode("a🐍")[:-1]) == "a"
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""


def test_invalid_bytes_do_not_hold_a_token_decoder_for_ever():
    vocabulary = Tokens(tokenizer_json())
    start_of_character = vocabulary.encode("🐍")[:1]
    decoder = vocabulary.decoder()
    assert "\ufffd" in decoder.feed(list(start_of_character) * 20)


def test_vocabulary_survives_its_file(vocabulary, tmp_path):
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert type(loaded) is type(vocabulary)
    assert loaded.size == vocabulary.size
    assert (loaded.encode(TEXT) == vocabulary.encode(TEXT)).all()


def test_characters_are_sorted_and_distinct():
    assert Characters("banana").characters == "abn"


def test_unknown_characters_are_named():
    with pytest.raises(UsageError, match=r"lacks these characters of the text: '!' 'é'$"):
        Characters("ab").encode("é!ab")
    with pytest.raises(UsageError, match="and 3 more"):
        Characters("z").encode("abcdefghijklm")


def test_unknown_words_are_named():
    vocabulary = Tokens(word_tokenizer_json())
    assert vocabulary.encode("to be").tolist() == [1, 2]
    with pytest.raises(UsageError, match="'nowhere'"):
        vocabulary.encode("to be nowhere")


def test_characters_that_a_tokenizer_drops_are_named():
    from tokenizers import Tokenizer, models

    vocabulary = Tokens(Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str())
    assert vocabulary.encode("ab ba").tolist() == [0, 1, 1, 0]
    with pytest.raises(UsageError, match="'c' 'd'"):
        vocabulary.encode("abcad")


def test_unknown_characters_of_a_unigram_tokenizer_are_named():
    from tokenizers import Tokenizer, models

    pieces = [("<unk>", -10.0), ("a", -1.0), ("b", -1.0)]
    vocabulary = Tokens(Tokenizer(models.Unigram(pieces, unk_id=0)).to_str())
    assert vocabulary.encode("ab").tolist() == [1, 2]
    with pytest.raises(UsageError, match="'c'"):
        vocabulary.encode("abc")


def test_ids_outside_the_vocabulary_are_refused(vocabulary):
    for wrong in (-1, vocabulary.size):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            vocabulary.decode([0, wrong])


def test_lone_surrogates_do_not_break_the_vocabularies():
    assert Bytes().encode("a\udcff").tolist() == [97, 255]
    with pytest.raises(UsageError, match="lacks"):
        Characters("a").encode("\udcff")
    with pytest.raises(UsageError, match="lacks"):
        Tokens(tokenizer_json()).encode("\udcff")


def test_empty_vocabulary_is_refused():
    with pytest.raises(UsageError, match="at least one"):
        Characters("")


def test_make_vocabulary(tmp_path):
    assert make_vocabulary("characters", "ab").size == 2
    assert make_vocabulary("bytes", "ab").size == 256
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json(), encoding="utf-8")
    assert make_vocabulary(str(path), "ab").kind == "tokens"


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        make_vocabulary(str(path), "")


def test_missing_tokenizer_is_refused():
    with pytest.raises(UsageError, match="no vocabulary"):
        make_vocabulary("nowhere.json", "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"\xff",
        b'{"format": 2, "kind": "bytes"}',
        b'{"format": 1, "kind": "runes"}',
        b'{"format": 1, "kind": "characters", "characters": 3}',
        json.dumps({"format": 1, "kind": "tokens", "tokenizer": "{}"}).encode(),
        b'{"format": 1, "a": ' + b"[" * 100_000,
    ],
)
def test_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"vocabulary\.json"):
        Vocabulary.load(path)
