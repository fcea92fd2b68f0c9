"""A model's folder: what is damaged or missing is named, and never loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from adder import DamagedFile, LanguageModel, LanguageModelConfig, UsageError

pytestmark = pytest.mark.refuses


@pytest.fixture
def folder(tmp_path):
    LanguageModel(LanguageModelConfig(vocab_size=5, d_model=8, n_layer=1)).save_pretrained(
        tmp_path, "adder"
    )
    return tmp_path


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    values["model"].update(changes)
    (folder / "config.json").write_text(json.dumps(values))


def test_a_folder_without_a_model_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"no model here: config.json is missing"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_training_run_is_told_from_a_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="is a training run"):
        LanguageModel.from_pretrained(tmp_path)


def test_a_disk_that_refuses_leaves_the_model_that_was_there(folder, monkeypatch):
    before = {each.name: each.read_bytes() for each in folder.iterdir()}

    def refuse(path, _):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(OSError, match="No space left"):
        LanguageModel(LanguageModelConfig(vocab_size=9)).save_pretrained(folder)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_a_config_that_is_no_json_is_damaged(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(DamagedFile, match="config.json"):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes", [{"d_model": "wide"}, {"d_model": 0}, {"colour": 1}, {"tie_embeddings": 1}]
)
def test_a_config_with_wrong_values_is_damaged_and_names_the_key(folder, changes):
    change_config(folder, **changes)
    with pytest.raises(DamagedFile, match=next(iter(changes))):
        LanguageModel.from_pretrained(folder)


def test_sizes_beyond_the_weights_are_refused_before_memory_is_taken(folder):
    change_config(folder, d_model=10**4, n_layer=100)
    with pytest.raises(DamagedFile, match="asks for"):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_cut_weights_are_damaged(folder, length):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(DamagedFile, match=r"model.safetensors"):
        LanguageModel.from_pretrained(folder)


def test_a_tensor_of_another_name_or_shape_is_named(folder):
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    renamed = {("x" if k.endswith("norm_f.weight") else k): v for k, v in tensors.items()}
    save_file(renamed, weights)
    with pytest.raises(DamagedFile, match=r"norm_f.weight is missing"):
        LanguageModel.from_pretrained(folder)
    tensors["backbone.embedding.weight"] = torch.zeros(4, 16)
    save_file(tensors, weights)
    with pytest.raises(DamagedFile, match=r"embedding.weight has shape \(4, 16\)"):
        LanguageModel.from_pretrained(folder)
