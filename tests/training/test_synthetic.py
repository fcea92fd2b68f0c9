"""Answers are counted as a plain loop over the rows counts them, and a run of a task resumes as any other."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from adder import LanguageModel, LanguageModelConfig
from adder.data.synthetic import NOT_ASKED, InductionHeads, Parity, make_synthetic
from adder.errors import DamagedFile, UsageError
from adder.training.config import TrainingConfig
from adder.training.loop import fit
from adder.training.progress import Silent
from adder.training.session import Session, resume_run, start_synthetic
from adder.training.synthetic import HELD_OUT, answer, answer_loss, run_synthetic
from adder.training.text import held_out_text

CPU = torch.device("cpu")
LAYERS = ("mamba", "mamba2", "s4", "s4d", "transformer", "gru")


@cache
def build(layer: str, vocab_size: int) -> LanguageModel:
    torch.manual_seed(1)
    more: dict[str, Any] = {"headdim": 8} if layer == "mamba2" else {}
    config = LanguageModelConfig(
        vocab_size=vocab_size, d_model=16, n_layer=2, layer=layer, tie_embeddings=False, **more
    )
    model = LanguageModel(config).double()
    with torch.no_grad():
        model.lm_head.weight *= 30
    return model


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("piece", [7, 64])
def test_answers_are_those_of_whole_rows(layer: str, piece: int) -> None:
    source = make_synthetic("mqar", length=40, pairs=5, keys=8, values=8)
    model = build(layer, source.vocab_size)
    found = answer(model, source, rows=3, length=50, seed=4, piece=piece)
    ids, targets = source.batch(3, 4, HELD_OUT, 50)
    with torch.no_grad():
        logits = model(ids).logits
    asked = targets != NOT_ASKED
    assert found.asked == 15
    assert found.right == int((logits.argmax(-1) == targets)[asked].sum())
    expected = F.cross_entropy(logits[asked], targets[asked], reduction="sum").item()
    assert found.nats == pytest.approx(expected, rel=1e-9)
    assert found.loss == found.nats / 15
    assert found.accuracy == found.right / 15
    assert model.training


def test_a_chance_level_and_a_perfect_answer() -> None:
    """A model that knows the parity by construction is right everywhere; one that always says 1 half of the time."""
    source = Parity(length=64)

    class Fixed(LanguageModel):
        perfect = True

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            right = F.one_hot(input_ids.cumsum(1) % 2, 2).double() * 50
            logits = right if self.perfect else torch.tensor([0.0, 1.0]).expand(right.shape)
            return type("Output", (), {"logits": logits, "state": None})

    model = Fixed(LanguageModelConfig(vocab_size=2, d_model=8, n_layer=1))
    found = answer(model, source, rows=50)
    assert found.accuracy == 1.0
    assert found.loss < 1e-9
    model.perfect = False
    _, targets = source.batch(50, 0, HELD_OUT)
    assert answer(model, source, rows=50).right == int(targets.sum())


def test_only_what_is_asked_costs() -> None:
    source = InductionHeads(length=20, symbols=5)
    ids, targets = source.batch(4, 0, 0)
    model = build("mamba", source.vocab_size)
    loss, state, figures = answer_loss(model, (ids, targets), None)
    last = model(ids).logits[:, -1]
    assert loss.item() == pytest.approx(F.cross_entropy(last, targets[:, -1]).item(), rel=1e-5)
    right = (last.argmax(-1) == targets[:, -1]).double().mean().item()
    assert figures["accuracy"].item() == pytest.approx(right)
    assert state is None


def begin(output: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {"steps": 6, "batch_size": 4, "evaluate_every": 3, "save_every": 2}
    settings |= {"length": 24, "carry_state": False, "validation": 0.0, "evaluation_tokens": 100}
    return start_synthetic(
        output,
        source=make_synthetic("selective-copying", length=24, tokens=4, symbols=6),
        model={"d_model": 16, "n_layer": 1, "d_state": 4},
        training=TrainingConfig(**(settings | changes)),
        device=CPU,
    )


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in session.learner.model.named_parameters()}


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    with begin(tmp_path / "whole") as session:
        outcome = fit(session, Silent())
        expected = weights(session)
    assert outcome.figures["tokens_evaluated"] == 96
    assert 0 <= outcome.figures["validation_accuracy"] <= 1
    assert math.isfinite(outcome.figures["validation_loss"])
    with begin(tmp_path / "parts", steps=4) as session:
        fit(session, Silent())
    with resume_run(tmp_path / "parts", changes={"steps": 6}, device=CPU) as session:
        fit(session, Silent())
        found = weights(session)
        run = session.path
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    from adder.training import open_run

    name, text = held_out_text(open_run(run))
    assert name == "a row of selective-copying"
    assert len(text) == 24
    assert text.endswith(">>>>")
    assert text not in {"".join(row) for row in _seen()}


def _seen() -> list[str]:
    source = make_synthetic("selective-copying", length=24, tokens=4, symbols=6)
    rows = [source.batch(4, 0, step)[0] for step in range(6)]
    return [source.vocabulary.decode(row.numpy()) for row in torch.cat(rows)]


def test_what_cannot_be_asked_is_named() -> None:
    source = Parity()
    with pytest.raises(UsageError, match="rows is 0"):
        answer(build("mamba", 2), source, rows=0)
    with pytest.raises(DamagedFile, match="the task of the run here cannot be read: no task x"):
        run_synthetic({"synthetic": {"name": "x"}}, "here")
    with pytest.raises(DamagedFile, match="the task of the run here"):
        run_synthetic({"synthetic": 3}, "here")
    assert run_synthetic({"name": "a text"}, "here") is None
