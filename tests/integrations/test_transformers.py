"""Hugging Face's Mamba families on our operators: the same numbers, from calls that are counted."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.15", reason="needs transformers from 5.15 on")

from families import MODELS, build, ids

from adder.integrations.transformers import FAMILIES, accelerate, calls, unpatch

pytestmark = pytest.mark.usefixtures("unpatched")
FACTOR, ROUNDING = 4, 8
FLOAT32 = torch.finfo(torch.float32).eps
STEPS = 5


@cache
def model_of(family: str, dtype: torch.dtype) -> nn.Module:
    return build(family, dtype)


def padded() -> tuple[Tensor, Tensor]:
    """Two rows, the first of them shorter: padded on the left."""
    tokens, mask = ids(), torch.ones(2, 11, dtype=torch.long)
    tokens[0, :4], mask[0, :4] = 0, 0
    return tokens, mask


def evaluate(model: nn.Module) -> dict[str, Tensor]:
    """Logits of a padded batch, gradients of every parameter, and the logits of each step that is decoded."""
    tokens, mask = padded()
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits
    forced = ids(2, STEPS, seed=2)  # each step reads these, whatever the logits before it say
    written = model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        logits_processor=[lambda read, scores: only(forced[:, read.shape[1] - 11], scores)],
    )
    model.train()
    model.zero_grad()
    model(ids(), labels=ids()).loss.backward()
    model.eval()
    return {
        "logits": logits[mask.bool()],
        "decoded": torch.stack(written.logits),
        **{name: each.grad.clone() for name, each in model.named_parameters()},
    }


def only(tokens: Tensor, scores: Tensor) -> Tensor:
    """Scores that leave one token for each row."""
    return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def test_every_family_has_a_model() -> None:
    assert set(MODELS) == set(FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MODELS)
def test_as_right_as_the_original(family: str, dtype: torch.dtype) -> None:
    """Our error against the original in float64 is a few times its own in the same type, at most.

    The original's float64 is rounded to float32 here and there, hence the floor.
    """
    truth = evaluate(model_of(family, torch.float64))
    model = model_of(family, dtype)
    theirs = evaluate(model)
    ours = evaluate(accelerate(model))
    for name, expected in truth.items():
        expected = expected.double()
        scale = expected.abs().max().item()
        bound = FACTOR * (theirs[name].double() - expected).abs().max().item()
        bound += ROUNDING * scale * max(torch.finfo(ours[name].dtype).eps, FLOAT32)
        error = (ours[name].double() - expected).abs().max().item()
        assert error <= bound, f"{name}: error {error:.3g} above {bound:.3g}, largest {scale:.3g}"


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", MODELS)
def test_generate_writes_the_same_tokens(family: str, beams: int) -> None:
    tokens, mask = padded()
    settings = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "num_beams": beams}
    settings["no_repeat_ngram_size"] = 1  # without it tiny models repeat themselves
    model = model_of(family, torch.float32)
    theirs = model.generate(tokens, **settings)
    assert torch.equal(accelerate(model).generate(tokens, **settings), theirs)


@pytest.mark.parametrize("family", MODELS)
def test_every_operator_ran_and_nothing_fell_back(family: str) -> None:
    model, before = accelerate(model_of(family, torch.float32)), calls()
    tokens, mask = padded()
    layers = model.config.num_hidden_layers
    model.generate(tokens, attention_mask=mask, max_new_tokens=STEPS, do_sample=False)
    ran = calls().ours - before.ours
    mamba2 = family in FAMILIES[4:]
    names = (
        ("mamba2_chunk_scan", "mamba2_selective_state_update")
        if mamba2
        else ("mamba_selective_scan", "mamba_selective_state_update")
    )
    mixers = ran[f"{family}.causal_conv1d_fn"]
    assert 0 < mixers <= layers
    heads = (
        model.config.n_mamba_heads if family == "zamba" else 1
    )  # each head has a scan of its own
    norms = [name for name in ran if name.endswith("Norm.forward")]
    assert len(norms) == 1
    assert {name: count for name, count in ran.items() if name not in norms} == {
        f"{family}.causal_conv1d_fn": mixers,
        f"{family}.causal_conv1d_update": mixers * (STEPS - 1),
        f"{family}.{names[0]}": mixers * heads,
        f"{family}.{names[1]}": mixers * heads * (STEPS - 1),
    }
    assert calls().originals == before.originals
    unpatch(model)
    model(tokens)
    assert calls().ours - before.ours == ran
