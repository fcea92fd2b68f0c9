"""Streams write: seeds, stops, where a stream stands afterwards, and incomplete characters."""

import pytest
import torch

from adder.data.vocabulary import Bytes, Characters
from adder.errors import UsageError
from adder.generation import Stream
from adder.models import LanguageModel, LanguageModelConfig
from adder.models.sampling import Sampler

VOCABULARY = Characters("abcdefgh .\n")


def make_model(vocab_size: int) -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(LanguageModelConfig(vocab_size=vocab_size, d_model=16, n_layer=2))
    return model.eval()


@pytest.fixture
def stream() -> Stream:
    stream = Stream(make_model(VOCABULARY.size), VOCABULARY)
    stream.feed("a bad")
    return stream


class Dictated(LanguageModel):
    """Writes what it is told, whatever it reads: token t of `script` follows position t."""

    def __init__(self, vocab_size: int, script: list[int]) -> None:
        super().__init__(LanguageModelConfig(vocab_size=vocab_size, d_model=8, n_layer=1))
        self.script = script
        self.at = 0

    def forward(self, input_ids, *arguments, **options):  # type: ignore[no-untyped-def]
        output = super().forward(input_ids, *arguments, **options)
        logits = torch.full_like(output.logits, -100.0)
        for place in range(logits.shape[1]):
            logits[:, place, self.script[min(self.at, len(self.script) - 1)]] = 100.0
            self.at += 1
        return output._replace(logits=logits)


def dictated(text: str) -> Stream:
    """A stream of bytes that will write `text` after a prompt of one token."""
    stream = Stream(Dictated(256, list(text.encode())).eval(), Bytes())
    stream.feed(">")
    return stream


def test_the_same_seed_writes_the_same_and_another_something_else(stream: Stream) -> None:
    first, second, third = (
        "".join(stream.fork().generate(60, seed=seed)) for seed in (1, 1, -(2**70))
    )
    assert first == second != third
    assert len(first) == 60


def test_without_a_seed_every_text_is_new_and_the_global_generator_is_left_alone(
    stream: Stream,
) -> None:
    before = torch.get_rng_state()
    assert "".join(stream.fork().generate(60)) != "".join(stream.fork().generate(60))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_text_written_by_two_calls_is_the_text_written_by_one(stream: Stream) -> None:
    options = {"temperature": 0.9, "top_k": 8, "repetition_penalty": 1.3, "seed": 7}
    whole = "".join(stream.fork().generate(40, **options))
    parts = "".join(stream.generate(15, **options)) + "".join(stream.generate(25, **options))
    assert parts == whole


def test_temperature_zero_is_the_likeliest_token_at_every_step(stream: Stream) -> None:
    other = stream.fork()
    for piece in stream.generate(20, temperature=0):
        expected = int(other.logits.argmax())
        assert VOCABULARY.encode(piece).tolist() == [expected]
        other.feed([expected])


def test_the_repetition_penalty_counts_everything_read(stream: Stream) -> None:
    other, text = stream.fork(), "a bad"
    for piece in stream.generate(20, temperature=0, repetition_penalty=1.5):
        seen = torch.as_tensor(VOCABULARY.encode(text))[None]
        sampler = Sampler(temperature=0, repetition_penalty=1.5)
        assert (
            VOCABULARY.encode(piece).tolist()
            == sampler.sample(other.logits[None], previous=seen).tolist()
        )
        other.feed(piece)
        text += piece


def test_a_stream_stands_after_each_piece_when_it_comes_out(stream: Stream) -> None:
    for count, _ in enumerate(stream.generate(10, seed=0), start=1):
        assert stream.position == 5 + count
        if count == 4:
            break
    other = Stream(stream.model, VOCABULARY)
    other.feed("a bad")
    for _, _ in zip(range(4), other.generate(4, seed=0), strict=True):
        pass
    assert torch.equal(stream.logits, other.logits)


def test_zero_tokens_are_none(stream: Stream) -> None:
    assert list(stream.generate(0)) == []
    assert stream.position == 5


def test_without_a_vocabulary_ids_come_out() -> None:
    stream = Stream(make_model(11))
    stream.feed([1, 2])
    ids = list(stream.generate(5, seed=0))
    assert len(ids) == 5
    assert all(isinstance(i, int) for i in ids)


@pytest.mark.parametrize(
    ("stop", "text", "position"),
    [
        ("cd", "ab", 5),
        (["xx", "bc"], "a", 4),
        ("abcdef", "", 7),
        (["zz", "fz"], "abcdef", 7),
        (ord("d"), "abc", 5),
        (["q", ord("c"), "bcd"], "ab", 4),
    ],
)
def test_it_stops_before_the_stop_and_stands_after_it(
    stop: str | int | list[str | int], text: str, position: int
) -> None:
    stream = dictated("abcdef")
    assert "".join(stream.generate(6, temperature=0, stop=stop)) == text
    assert stream.position == position


def test_a_possible_stop_is_held_back_until_it_is_decided() -> None:
    stream = dictated("abcabx")
    pieces = [(piece, stream.position) for piece in stream.generate(6, temperature=0, stop="abx_")]
    assert pieces == [("abc", 4), ("abx", 7)]


def test_a_stop_string_may_be_cut_inside_a_character() -> None:
    stream = dictated("né→end")
    assert "".join(stream.generate(20, temperature=0, stop="→e")) == "né"


def test_characters_come_out_whole() -> None:
    stream = dictated("é→🐍.")
    pieces = list(stream.generate(10, temperature=0))
    assert pieces == ["é", "→", "🐍", "."]


def test_a_character_cut_by_the_end_of_a_call_comes_out_of_the_next() -> None:
    stream = dictated("a🐍b")
    assert list(stream.generate(3, temperature=0)) == ["a"]
    assert list(stream.generate(3, temperature=0)) == ["🐍", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1, "temperature": -1}, "temperature"),
        ({"max_new_tokens": 1, "stop": ""}, "stop string"),
        ({"max_new_tokens": 1, "stop": ["a", ""]}, "stop string"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_written(
    stream: Stream, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        stream.generate(**options)  # type: ignore[arg-type]
    assert stream.position == 5


def test_stop_strings_need_a_vocabulary() -> None:
    stream = Stream(make_model(11))
    stream.feed([1])
    with pytest.raises(UsageError, match="vocabulary"):
        stream.generate(1, stop="a")
