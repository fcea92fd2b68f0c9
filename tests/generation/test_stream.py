"""Streams read: any cutting of a text is the same, what may be fed, forks, and what errors say."""

import numpy as np
import pytest
import torch

from adder.data.vocabulary import Bytes, Characters
from adder.errors import UsageError
from adder.generation import Stream
from adder.models import LanguageModel, LanguageModelConfig

VOCABULARY = Characters("abcdefgh .\n")
TEXT = "a bad cab had a fab gaff.\nbeach faced hedge."


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(LanguageModelConfig(vocab_size=VOCABULARY.size, d_model=16, n_layer=2))
    # A fresh model is nearly uniform; larger weights give its logits something to say.
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model.eval()


def whole(model: LanguageModel, text: str) -> torch.Tensor:
    """The logits (l, v) of one call on a whole text."""
    ids = torch.as_tensor(VOCABULARY.encode(text))
    with torch.no_grad():
        return model(ids[None]).logits[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 19, 100])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
def test_any_cutting_gives_the_same_logits(
    model: LanguageModel, size: int, dtype: torch.dtype, tolerance: float
) -> None:
    model.to(dtype)
    stream = Stream(model, VOCABULARY)
    expected = whole(model, TEXT)
    for start in range(0, len(TEXT), size):
        stream.feed(TEXT[start : start + size])
        difference = stream.logits - expected[stream.position - 1]
        assert difference.abs().max() <= tolerance * expected.abs().max()
    assert stream.position == len(TEXT)


def test_a_long_feed_is_run_in_bounded_pieces(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adder.generation.stream.LONGEST_PIECE", 8)
    lengths = []
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    stream = Stream(model, VOCABULARY)
    stream.feed(TEXT)
    assert lengths == [8] * 5 + [4]
    torch.testing.assert_close(stream.logits, whole(model, TEXT)[-1], rtol=1e-4, atol=1e-4)


def test_pieces_are_shorter_where_the_vocabulary_is_large(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adder.generation.stream.LOGITS_AT_ONCE", 3 * VOCABULARY.size)
    lengths = []
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    stream = Stream(model, VOCABULARY)
    stream.feed("a")
    stream.logprobs("abcdefgh")
    assert lengths == [1, 3, 3, 2]


def test_a_feed_keeps_the_last_logits_alone_and_in_longer_pieces(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adder.generation.stream.LOGITS_AT_ONCE", 1)
    shapes = []
    model.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.logits.shape)))
    Stream(model, VOCABULARY).feed("abcdefgh")
    assert shapes == [(1, 1, VOCABULARY.size)]


def test_ids_may_come_in_any_form(model: LanguageModel) -> None:
    stream = Stream(model)
    stream.feed([1, 2, 3])
    for ids in ((1, 2, 3), np.array([1, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.int32)):
        other = Stream(model)
        other.feed(ids)
        assert torch.equal(other.logits, stream.logits)


def test_feeding_nothing_changes_nothing(model: LanguageModel) -> None:
    stream = Stream(model, VOCABULARY)
    stream.feed("")
    stream.feed([])
    assert stream.position == 0
    stream.feed("ab")
    logits = stream.logits
    stream.feed("")
    assert stream.position == 2
    assert torch.equal(stream.logits, logits)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("abz", "'z'"),
        ([1, -1], "id -1 is outside"),
        ([1, 11], "id 11 is outside the vocabulary of 11"),
        ([0.5], "whole numbers"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([True], "whole numbers"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_read(
    model: LanguageModel, tokens: str | list[int], message: str
) -> None:
    stream = Stream(model, VOCABULARY)
    stream.feed("ab")
    logits = stream.logits
    with pytest.raises(UsageError, match=message):
        stream.feed(tokens)
    assert stream.position == 2
    assert torch.equal(stream.logits, logits)


def test_text_needs_a_vocabulary(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="no vocabulary"):
        Stream(model).feed("ab")


def test_a_vocabulary_of_another_size_is_refused(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="256 tokens and the model 11"):
        Stream(model, Bytes())


def test_before_the_first_token_there_is_nothing_to_go_on(model: LanguageModel) -> None:
    stream = Stream(model, VOCABULARY)
    for ask in (lambda: stream.logits, lambda: stream.logprobs("a"), lambda: stream.generate(1)):
        with pytest.raises(UsageError, match="read nothing"):
            ask()


def test_logprobs_are_those_of_the_whole_text_and_advance(model: LanguageModel) -> None:
    ids = torch.as_tensor(VOCABULARY.encode(TEXT))
    expected = whole(model, TEXT)[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    stream = Stream(model, VOCABULARY)
    stream.feed(TEXT[0])
    values = [stream.logprobs(TEXT[1:6]), stream.logprobs(""), stream.logprobs(TEXT[6:])]
    torch.testing.assert_close(torch.cat(values), expected, rtol=1e-4, atol=1e-4)
    assert stream.position == len(TEXT)


def test_logprobs_do_not_depend_on_the_pieces_inside(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [Stream(model, VOCABULARY) for _ in range(2)]
    for stream in streams:
        stream.feed("a")
    expected = streams[0].logprobs(TEXT)
    monkeypatch.setattr("adder.generation.stream.LONGEST_PIECE", 5)
    torch.testing.assert_close(streams[1].logprobs(TEXT), expected, rtol=1e-4, atol=1e-4)


def test_a_fork_goes_its_own_way(model: LanguageModel) -> None:
    stream = Stream(model, VOCABULARY)
    stream.feed("a bad")
    logits = stream.logits
    fork = stream.fork()
    assert fork.logprobs(" cab").shape == (4,)
    assert (stream.position, fork.position) == (5, 9)
    assert torch.equal(stream.logits, logits)
    stream.feed(" cab")
    torch.testing.assert_close(stream.logits, fork.logits, rtol=1e-4, atol=1e-4)


def test_nothing_is_kept_for_a_backward_pass(model: LanguageModel) -> None:
    stream = Stream(model, VOCABULARY)
    stream.feed("a bad")
    assert not stream.logits.requires_grad
    assert not stream.logprobs(" cab").requires_grad
