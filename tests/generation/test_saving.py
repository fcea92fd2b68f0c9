"""Streams saved and loaded: the same text goes on, and a wrong or damaged file is refused."""

from pathlib import Path

import pytest
import torch

from adder.data.vocabulary import Characters
from adder.errors import DamagedFile, UsageError
from adder.generation import Stream
from adder.generation.sealed import load_sealed, save_sealed
from adder.generation.stream import fingerprint
from adder.models import LanguageModel, LanguageModelConfig

VOCABULARY = Characters("abcdefgh .\n")


def make_model(seed: int = 3, n_layer: int = 2) -> LanguageModel:
    torch.manual_seed(seed)
    config = LanguageModelConfig(vocab_size=VOCABULARY.size, d_model=16, n_layer=n_layer)
    return LanguageModel(config).eval()


@pytest.fixture
def stream() -> Stream:
    stream = Stream(make_model(), VOCABULARY)
    stream.feed("a bad cab had")
    return stream


def test_a_loaded_stream_goes_on_bit_for_bit(stream: Stream, tmp_path: Path) -> None:
    options = {"temperature": 0.8, "repetition_penalty": 1.2, "seed": 5}
    first = "".join(stream.generate(10, **options))
    stream.save(tmp_path / "state")
    loaded = Stream.load(tmp_path / "state", make_model(), VOCABULARY)
    assert loaded.position == stream.position == 13 + len(first)
    assert torch.equal(loaded.logits, stream.logits)
    assert "".join(loaded.generate(30, **options)) == "".join(stream.generate(30, **options))
    assert torch.equal(loaded.logits, stream.logits)


def test_a_stream_that_has_read_nothing_can_be_saved_too(tmp_path: Path) -> None:
    Stream(make_model()).save(tmp_path / "state")
    loaded = Stream.load(tmp_path / "state", make_model())
    assert loaded.position == 0
    with pytest.raises(UsageError, match="read nothing"):
        loaded.generate(1)


def test_the_file_stays_small_however_long_the_text(stream: Stream, tmp_path: Path) -> None:
    stream.save(tmp_path / "short")
    stream.feed(" had a cab" * 300)
    stream.save(tmp_path / "long")
    growth = (tmp_path / "long").stat().st_size - (tmp_path / "short").stat().st_size
    assert abs(growth) < 64


@pytest.mark.parametrize("other", [{"seed": 4}, {"n_layer": 3}], ids=["weights", "sizes"])
def test_another_model_is_refused(stream: Stream, tmp_path: Path, other: dict[str, int]) -> None:
    stream.save(tmp_path / "state")
    with pytest.raises(UsageError, match="another model"):
        Stream.load(tmp_path / "state", make_model(**other), VOCABULARY)


def test_the_fingerprint_tells_one_changed_weight() -> None:
    model = make_model()
    before = fingerprint(model)
    assert fingerprint(make_model()) == before
    with torch.no_grad():
        model.backbone.norm_f.weight[3] += 1e-6
    assert fingerprint(model) != before


def test_the_fingerprint_can_read_bfloat16() -> None:
    assert fingerprint(make_model().bfloat16()) != fingerprint(make_model())


def test_a_damaged_file_is_refused_by_name(stream: Stream, tmp_path: Path) -> None:
    path = tmp_path / "state"
    stream.save(path)
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(DamagedFile, match="state"):
            Stream.load(path, stream.model, VOCABULARY)
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedFile, match="state"):
        Stream.load(path, stream.model, VOCABULARY)


def test_a_sealed_file_of_another_kind_or_format_is_refused(stream: Stream, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_sealed(path, {"x": torch.zeros(1)}, {"kind": "picture"})
    with pytest.raises(DamagedFile, match="something else"):
        Stream.load(path, stream.model)
    stream.save(path)
    tensors, facts = load_sealed(path)
    save_sealed(path, tensors, {**facts, "format": 99})
    with pytest.raises(UsageError, match="format 99"):
        Stream.load(path, stream.model)


def test_a_missing_file_is_an_os_error(stream: Stream, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Stream.load(tmp_path / "nothing", stream.model)
