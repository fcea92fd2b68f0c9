"""`adder convert`: a published checkpoint becomes a folder that the other commands read."""

import numpy as np
import pytest
import torch

from adder import SequenceClassifier
from adder.cli.main import main

from ..data.sources import write_series
from ..models.test_standalone_s4d import state_dict


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"model": state_dict(), "acc": 91.5, "epoch": 7}, tmp_path / "ckpt.pth")
    return tmp_path / "ckpt.pth"


def test_a_converted_model_is_evaluated_and_classifies(checkpoint, tmp_path, as_json, capsys):
    model = tmp_path / "model"
    assert main(["convert", str(checkpoint), str(model)]) == 0
    line = capsys.readouterr().out
    assert "3 layers of S4D, d_model 6, state size 8, 2 inputs, 5 classes" in line
    assert f"adder evaluate {model} SOURCE" in line
    data = write_series(tmp_path / "x.npz", y_train=np.arange(16) % 5, y_test=np.arange(6) % 5)
    result = as_json("evaluate", model, data, "--view", "both")
    assert (result["sequences"], result["predictions_that_differ"]) == (6, 0)
    (tmp_path / "numbers.txt").write_text("1 2\n3 4\n")
    assert as_json("classify", model, tmp_path / "numbers.txt")["class"] in "01234"


def test_options_and_json(checkpoint, tmp_path, as_json):
    facts = as_json("convert", checkpoint, tmp_path / "model", "--prenorm")
    assert facts["config"]["prenorm"] is True
    assert SequenceClassifier.from_pretrained(tmp_path / "model").config.prenorm


def test_what_cannot_be_converted(checkpoint, tmp_path, line_of):
    assert "is there already: give another DST" in line_of(2, "convert", checkpoint, tmp_path)
    model = tmp_path / "model"
    assert "cannot read" in line_of(2, "convert", tmp_path / "nowhere.pt", model)
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert "text.pt is damaged" in line_of(1, "convert", tmp_path / "text.pt", model)
    tensors = state_dict()
    del tensors["norms.1.bias"]
    torch.save(tensors, tmp_path / "less.pt")
    assert "norms.1.bias is missing" in line_of(2, "convert", tmp_path / "less.pt", model)
    assert not model.exists()
