"""`adder convert --format`: a run becomes a published model and back, and what lies beside it goes along."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from adder import LanguageModel, LanguageModelConfig
from adder.cli.main import main
from adder.models.published import format_of
from adder.training.opened import open_model
from adder.training.run_folder import open_run

IDS = torch.tensor([[1, 2, 3, 4, 0, 2]])


def logits(folder: Path) -> torch.Tensor:
    return LanguageModel.from_pretrained(folder)(IDS).logits


def test_a_run_through_every_format_and_back(text_run: Path, tmp_path: Path, capsys: Any) -> None:
    truth = open_run(text_run).model()(IDS).logits
    source = text_run
    for format in ("huggingface", "mamba_ssm", "adder", "huggingface"):
        target = tmp_path / f"{format}-{source.name}"
        assert main(["convert", str(source), str(target), f"--format={format}"]) == 0
        assert "parameters of mamba, in the format of" in capsys.readouterr().out
        assert format_of(target) == format
        # Up to the rounding of a product with more rows or fewer.
        torch.testing.assert_close(logits(target), truth, rtol=1e-5, atol=1e-6)
        assert main(["generate", str(target), "the ", "--max-tokens=3", "--temperature=0"]) == 0
        assert capsys.readouterr().out.startswith("the ")
        source = target


def test_without_an_option_it_is_hugging_faces(
    text_run: Path, tmp_path: Path, as_json: Any
) -> None:
    facts = as_json("convert", text_run, tmp_path / "new")
    assert facts["format"] == format_of(tmp_path / "new") == "huggingface"
    assert facts["parameters"] == open_run(text_run).model().config.parameter_count()


def test_a_tokenizer_of_fewer_tokens_than_rows(tmp_path: Path, capsys: Any) -> None:
    words = {word: i for i, word in enumerate(["<unk>", "a", "b", "c", "d"])}
    folder = tmp_path / "model"
    torch.manual_seed(0)
    LanguageModel(LanguageModelConfig(vocab_size=8, d_model=8, n_layer=1)).save_pretrained(folder)
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    model, vocabulary = open_model(folder).reader()
    assert (vocabulary.size, model.config.vocab_size, model.config.padded_vocab_size) == (5, 5, 8)
    assert model(IDS).logits.shape[-1] == 5
    assert main(["convert", str(folder), str(tmp_path / "ssm"), "--format=mamba_ssm"]) == 0
    assert json.loads((tmp_path / "ssm" / "config.json").read_text())["vocab_size"] == 8
    assert (tmp_path / "ssm" / "tokenizer.json").exists()
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "ssm"), "a", "--max-tokens=2"]) == 0
    words |= {f"w{i}": 5 + i for i in range(9)}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    assert main(["generate", str(folder), "a"]) == 1
    assert "its vocabulary has 14 tokens, and its model 8" in capsys.readouterr().err
    (folder / "tokenizer.json").write_text("{")
    assert main(["generate", str(folder), "a"]) == 1
    assert "tokenizer.json is damaged" in capsys.readouterr().err


def test_what_cannot_be_converted(text_run: Path, tmp_path: Path, line_of: Any) -> None:
    new, small = tmp_path / "new", tmp_path / "small"
    assert "--format must be one of" in line_of(2, "convert", text_run, new, "--format=onnx")
    assert main(["convert", str(text_run), str(small), "--weights=int8"]) == 0
    line = line_of(2, "convert", small, new)
    assert "transformers' mamba has no weights int8" in line
    assert "is a file" in line_of(2, "convert", small / "config.json", new, "--format=adder")
    assert "--prenorm is for" in line_of(2, "convert", text_run, new, "--prenorm")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["small"]


def test_a_name_on_the_hub_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

    def unreachable(*_: object, **__: object) -> None:
        raise hub.errors.LocalEntryNotFoundError("no\nway")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    line = line_of(2, "convert", "someone/mamba", tmp_path / "new")
    assert "the Hugging Face Hub cannot be reached: no way" in line


def test_a_name_on_the_hub_without_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_of: Any
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install huggingface_hub" in line_of(2, "generate", "someone/mamba", "a")
    assert "no folder" in line_of(2, "generate", tmp_path / "nothing" / "there", "a")
