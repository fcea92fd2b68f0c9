"""A token in one native call: the same numbers as the layers, and only where nothing in the model was changed."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import adder
from adder.layers.state import detach_state
from adder.models.decoder import Decoder
from adder.models.quantized import quantize_model
from adder.ops import native

needs_kernels = pytest.mark.skipif(native.module() is None, reason="adder was not compiled here")


def small(**changes: object) -> adder.LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 40, "n_layer": 3, "d_state": 8, "initializer_range": 0.5}
    model = adder.LanguageModel(adder.LanguageModelConfig(**(sizes | changes)))  # type: ignore[arg-type]
    return model.eval()


def mamba2(**changes: object) -> adder.LanguageModel:
    return small(**({"layer": "mamba2", "headdim": 20} | changes))


KINDS: dict[str, Callable[[], adder.LanguageModel]] = {
    "float32": small,
    "untied, with biases": lambda: small(tie_embeddings=False, bias=True, conv_bias=False),
    "bfloat16": lambda: small().to(torch.bfloat16),
    "int8": lambda: quantize_model(small(), "int8"),
    "int4": lambda: quantize_model(small(), "int4"),
}
KINDS |= {
    "mamba2": lambda: mamba2(),
    "mamba2, groups, limits": lambda: mamba2(ngroups=2, dt_limit=(0.01, 0.5), D_has_hdim=True),
    "mamba2, norm first": lambda: mamba2(norm_before_gate=True, bias=True, conv_bias=False),
    "mamba2, no norm": lambda: mamba2(rmsnorm=False, d_conv=2),
    "mamba2 bfloat16": lambda: mamba2().to(torch.bfloat16),
    "mamba2 int8": lambda: quantize_model(mamba2(), "int8"),
}
# The layers round to bfloat16 between the operators, the kernel does not.
CLOSE = {"bfloat16": 4e-2, "int8": 2e-2, "int4": 2e-2}
CLOSE |= {"mamba2 bfloat16": 4e-2, "mamba2 int8": 2e-2}


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_same_numbers_as_the_layers(kind: str) -> None:
    model = KINDS[kind]()
    decoder = Decoder(model)
    assert decoder.refusal is None
    ids = torch.randint(0, 50, (3, 12))
    state = layered = model(ids[:, :4], state=model.initial_state(3)).state
    spare = None
    for t in range(4, 12):
        with torch.enable_grad():  # a token to be learnt from goes through the layers
            output = model(ids[:, t : t + 1], state=layered)
        expected, layered = output.logits.detach(), detach_state(output.state)
        got, after = decoder.step(ids[:, t], state, spare)
        assert got.dtype == expected.dtype
        close = CLOSE.get(kind, 1e-5) * float(expected.abs().max())
        torch.testing.assert_close(got, expected[:, 0], rtol=0, atol=close)
        state, spare = after, state if t > 4 else None


@needs_kernels
@torch.no_grad()
def test_forward_of_one_token_is_the_decoder() -> None:
    model, ids = small(), torch.tensor([[3], [7]])
    state = model.initial_state(2)
    expected, after = Decoder(model).step(ids[:, 0], state)
    output = model(ids, state=state)
    assert torch.equal(output.logits[:, 0], expected)
    assert torch.equal(output.state[2]["ssm"], after[2]["ssm"])  # type: ignore[index, call-overload]


def test_gradients_go_through_the_layers() -> None:
    model, ids = small(), torch.tensor([[3]])
    state = model.initial_state(1)
    model(ids, state=state).logits.sum().backward()
    assert model.backbone.layers[0].mixer.in_proj.weight.grad is not None  # type: ignore[union-attr]


@needs_kernels
@torch.no_grad()
def test_weights_changed_between_calls() -> None:
    model, ids = small(), torch.tensor([[3]])
    state = model.initial_state(1)
    before = model(ids, state=state).logits
    model.backbone.layers[1].mixer.D.mul_(3)  # type: ignore[union-attr, operator]
    in_place = model(ids, state=state).logits
    assert not torch.equal(before, in_place)
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)
    assert not torch.equal(in_place, model(ids, state=state).logits)
    assert model.double()(ids, state=model.initial_state(1)).logits.dtype == torch.float64


@needs_kernels
@torch.no_grad()
def test_a_decoder_notices_other_memory() -> None:
    model, ids = small(), torch.tensor([3, 7])
    decoder = Decoder(model)
    decoder.step(ids, model.initial_state(2))
    model.to(torch.bfloat16)
    got, _ = decoder.step(ids, model.initial_state(2))
    expected, _ = Decoder(model).step(ids, model.initial_state(2))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)


@torch.no_grad()
def test_ids_and_states_of_other_types() -> None:
    """As the layers take them: int32 ids, and a state from before the model's type was changed."""
    model = small()
    state = model(torch.tensor([[1, 2]]), state=model.initial_state(1)).state
    assert model(torch.tensor([[3]], dtype=torch.int32), state=state).logits.isfinite().all()
    after = model.to(torch.bfloat16)(torch.tensor([[3]]), state=state)
    assert after.state[0]["conv"].dtype == torch.float32  # type: ignore[index, call-overload]


class Doubled(nn.Module):
    """What a library for fine-tuning puts in a projection's place."""

    def __init__(self, inside: nn.Linear):
        super().__init__()
        self.inside, self.bias, self.weight = inside, inside.bias, inside.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x) * 2  # type: ignore[no-any-return]


class Louder(adder.LanguageModel):
    """A model of somebody's own."""

    def forward(self, *arguments, **options):  # type: ignore[no-untyped-def]
        output = super().forward(*arguments, **options)
        return output._replace(logits=output.logits * 2)


def subclassed(model: adder.LanguageModel) -> None:
    model.__class__ = Louder


def replaced(model: adder.LanguageModel) -> None:
    mixer = model.backbone.layers[1].mixer
    mixer.in_proj = Doubled(mixer.in_proj)  # type: ignore[union-attr, arg-type, assignment]


def replaced_steps(model: adder.LanguageModel) -> None:
    mixer = model.backbone.layers[1].mixer
    mixer.dt_proj = Doubled(mixer.dt_proj)  # type: ignore[union-attr, arg-type, assignment]


def hooked(model: adder.LanguageModel) -> None:
    model.backbone.layers[0].norm.register_forward_hook(lambda *_: _[2] * 2)  # type: ignore[union-attr, operator]


def forwarded(model: adder.LanguageModel) -> None:
    norm = model.backbone.norm_f
    old = norm.forward
    norm.forward = lambda x: old(x) * 2  # type: ignore[method-assign]


def backbone_hooked(model: adder.LanguageModel) -> None:
    model.backbone.register_forward_hook(lambda *_: (_[2][0] * 2, _[2][1]))


def biased(model: adder.LanguageModel) -> None:
    mixer = model.backbone.layers[1].mixer
    wide = mixer.x_proj.out_features  # type: ignore[union-attr]
    mixer.x_proj.bias = nn.Parameter(torch.ones(wide))  # type: ignore[union-attr]


def other_eps(model: adder.LanguageModel) -> None:
    model.backbone.layers[1].norm.eps = 0.5  # type: ignore[union-attr, assignment]


def gate_hooked(model: adder.LanguageModel) -> None:
    model.backbone.layers[0].mixer.norm.register_forward_hook(lambda *_: _[2] * 2)  # type: ignore[union-attr, operator]


def other_groups(model: adder.LanguageModel) -> None:
    model.backbone.layers[1].mixer.norm.group_size = 20  # type: ignore[union-attr, assignment]


OF_MAMBA2 = {
    gate_hooked: "layers.0.mixer.norm has a hook",
    other_groups: "layers.1.mixer.norm normalises other groups",
}
CHANGES = OF_MAMBA2 | {
    backbone_hooked: "backbone has a hook",
    biased: "x_proj has a bias",
    other_eps: "has another eps, 0.5",
    subclassed: "the model is a Louder",
    replaced: "layers.1.mixer.in_proj is a Doubled",
    replaced_steps: "layers.1.mixer.dt_proj is a Doubled",
    hooked: "layers.0.norm has a hook",
    forwarded: "norm_f has a hook",
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_changed_model_runs_its_own_layers(
    change: Callable[[adder.LanguageModel], None],
) -> None:
    model = mamba2() if change in OF_MAMBA2 else small()
    ids = torch.randint(0, 50, (2, 6))
    before = model(ids).logits
    change(model)
    refusal = Decoder(model).refusal
    assert refusal is not None
    assert CHANGES[change] in refusal
    expected, state, steps = model(ids).logits, model.initial_state(2), []
    assert not torch.allclose(before, expected)
    for t in range(6):
        _, logits, state = model(ids[:, t : t + 1], state=state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_types_without_a_kernel() -> None:
    model = small().double()
    refusal = Decoder(model).refusal
    assert refusal is not None
    ids = torch.randint(0, 50, (2, 6))
    assert model.generate(ids, 3, temperature=0.0).shape == (2, 9)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_generate_is_greedy_by_the_layers(kind: str) -> None:
    """A batch, over several tokens: the memory of states that are over is used again, and nothing is mixed up."""
    model = KINDS[kind]()
    ids = torch.randint(0, 50, (4, 5))
    made = model.generate(ids, 12, temperature=0.0)
    if (
        kind in CLOSE
    ):  # another rounding may choose another token: the same streams one by one choose the same
        rows = [model.generate(ids[i : i + 1], 12, temperature=0.0) for i in range(4)]
        assert torch.equal(made, torch.cat(rows))
        return
    logits = model(made).logits
    assert torch.equal(made[:, 5:], logits[:, 4:-1].argmax(-1))
