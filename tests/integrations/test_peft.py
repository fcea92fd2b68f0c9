"""PEFT's adapters on a LanguageModel: they are trained, through our operators, saved, and merged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("peft", minversion="0.18", reason="needs peft from 0.18 on")

from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from adder import LanguageModel, LanguageModelConfig, UsageError
from adder.models import quantize_model
from adder.models.decoder import Decoder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
VOCABULARY = 20
PROJECTIONS = {
    "mamba": ["in_proj", "x_proj", "dt_proj", "out_proj"],
    "mamba2": ["in_proj", "out_proj"],
}
OPERATORS = {"mamba": "selective_scan", "mamba2": "state_space_dual"}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"lora_dropout": 0.3},
    "lora_only": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "whole conv1d": {"modules_to_save": ["conv1d"]},
    "whole head": {"modules_to_save": ["lm_head"]},
}


def build(layer: str = "mamba", **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "d_state": 4}
    if layer == "mamba2":
        sizes["headdim"] = 8
    return LanguageModel(LanguageModelConfig(layer=layer, **(sizes | options))).eval()


def ids(*shape: int) -> Tensor:
    return torch.randint(VOCABULARY, shape or (3, 12), generator=torch.Generator().manual_seed(1))


def adapt(model: LanguageModel, task: str | None = None, **options: Any) -> PeftModel:
    """The model with an adapter on every projection, none of which is zero."""
    torch.manual_seed(2)
    targets = PROJECTIONS[model.config.layer]
    options = {"r": 2, "target_modules": targets, "init_lora_weights": False} | options
    return get_peft_model(model, LoraConfig(task_type=task, **options))


def step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> float:
    loss = model(input_ids=ids(), labels=ids()).loss
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


class Counter(TorchDispatchMode):
    """Which of our operators ran, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "adder":
            self.seen.add(func._opname)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("layer", PROJECTIONS)
def test_every_adapter_is_trained_through_our_operators(layer: str, task: str | None) -> None:
    model = adapt(build(layer), task).train()
    with Counter() as counter:
        step(model)
    operator = OPERATORS[layer]
    assert {operator, f"{operator}_backward", "short_convolution_backward"} <= counter.seen
    adapters = trained(model)
    assert len(adapters) == 2 * 2 * len(PROJECTIONS[layer])
    for name, each in adapters.items():
        assert each.grad.abs().max() > 0, name
    optimizer = torch.optim.AdamW(adapters.values(), lr=3e-2)
    losses = [step(model, optimizer) for _ in range(15)]
    assert losses[-1] < losses[0] - 0.08


@pytest.mark.parametrize("layer", PROJECTIONS)
def test_gradients_are_those_of_the_merged_weights(layer: str) -> None:
    """In float64: d loss / dA of W + s B A, where the model computes with the sum itself."""
    model = adapt(build(layer).double())
    step(model)
    whole = copy.deepcopy(model).merge_and_unload().requires_grad_()
    step(whole)
    for name, module in model.get_base_model().named_modules():
        if not hasattr(module, "lora_A"):
            continue
        a, b, scale = module.lora_A["default"], module.lora_B["default"], module.scaling["default"]
        dW = whole.get_submodule(name).weight.grad
        for got, expected in ((a, b.weight.T @ dW), (b, dW @ a.weight.T)):
            expected = scale * expected
            assert (got.weight.grad - expected).abs().max() < 1e-12 + 1e-9 * expected.abs().max()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("layer", PROJECTIONS)
def test_merged_is_the_same_model_and_decoded_fast_again(
    layer: str, options: dict[str, Any]
) -> None:
    """float32 may err as much as it does before merging, four times over."""
    model = adapt(build(layer), "CAUSAL_LM", **options)
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
    for _ in range(3):
        step(model.train(), optimizer)
    model.eval()
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(input_ids=ids()).logits
        before = model(input_ids=ids()).logits
        written = model.generate(input_ids=ids(2, 4), max_new_tokens=6, temperature=0.0)
        assert Decoder(model.get_base_model()).refusal is not None
        merged = model.merge_and_unload()
        after = merged(ids()).logits
    assert (truth - build(layer).double()(ids()).logits).abs().max() > 1e-3  # there is an effect
    allowed = (
        4 * (before - truth).abs().max() + 8 * torch.finfo(torch.float32).eps * truth.abs().max()
    )
    assert (after - truth).abs().max() <= allowed
    assert type(merged) is LanguageModel
    assert Decoder(merged).refusal == Decoder(build(layer)).refusal
    assert torch.equal(merged.generate(ids(2, 4), 6, temperature=0.0), written)


def test_a_text_in_pieces_and_a_padded_row_through_adapters() -> None:
    model = adapt(build().double(), "CAUSAL_LM", bias="all")
    whole = model(input_ids=ids()).logits
    state = model.initial_state(3)
    first, state = model(input_ids=ids()[:, :5], state=state)[1:]
    second, state = model(input_ids=ids()[:, 5:], state=state)[1:]
    assert torch.allclose(torch.cat([first, second], 1), whole, rtol=0, atol=1e-12)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[:, :4] = 0
    alone = model(input_ids=ids()[:, 4:]).logits
    padded = model(input_ids=ids(), attention_mask=mask).logits
    assert torch.allclose(padded[:, 4:], alone, rtol=0, atol=1e-12)


def test_checkpointing_repeats_the_dropout_of_an_adapter() -> None:
    model = adapt(build(), lora_dropout=0.5).train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(3)
        step(model)
        gradients.append([each.grad for each in trained(model).values()])
        model.get_base_model().activation_checkpointing_enable()
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_adapters_are_saved_loaded_and_switched_off(tmp_path: Path, task: str | None) -> None:
    model = adapt(build(), task, modules_to_save=["norm_f"])
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(), tmp_path)
    assert torch.equal(again(input_ids=ids()).logits, model(input_ids=ids()).logits)
    with again.disable_adapter():
        assert torch.equal(again(input_ids=ids()).logits, build()(ids()).logits)


def test_a_merged_model_is_saved_as_any(tmp_path: Path) -> None:
    merged = adapt(build()).merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    assert torch.equal(again(ids()).logits, merged(ids()).logits)


def test_in_bfloat16_adapters_are_float32_and_merge() -> None:
    """Merging rounds the sum of the weights, so the merged model errs as a bfloat16 model does."""
    model = adapt(build().to(torch.bfloat16))
    assert {each.dtype for each in trained(model).values()} == {torch.float32}
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(input_ids=ids()).logits
        before = model(input_ids=ids()).logits
        after = model.merge_and_unload()(ids()).logits
    allowed = 4 * (before - truth).abs().max() + torch.finfo(torch.bfloat16).eps * truth.abs().max()
    assert (after - truth).abs().max() <= allowed


def test_a_head_of_its_own_takes_an_adapter() -> None:
    model = adapt(build(tie_embeddings=False).double(), target_modules=["lm_head", "embedding"])
    step(model)
    assert all(each.grad.abs().max() > 0 for each in trained(model).values())
    before = model(input_ids=ids()).logits
    after = model.merge_and_unload()(ids()).logits
    assert torch.allclose(before, after, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embedding"]},
        {"target_modules": "all-linear"},
        {"trainable_token_indices": {"embedding": [1, 2]}},
    ],
)
def test_an_adapter_that_merging_would_spread_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"there is an adapter on .*tie_embeddings makes"):
        step(adapt(build(), **options))


def test_all_linear_without_the_head() -> None:
    model = adapt(build(), target_modules="all-linear", exclude_modules=["lm_head"])
    step(model)
    assert len(trained(model)) == 2 * 2 * 4


def test_an_adapter_that_would_have_no_effect_is_refused() -> None:
    with pytest.raises(UsageError, match=r"conv1d is a peft\S+\.Conv1d, expected torch.nn.Conv1d"):
        step(adapt(build(), target_modules=["conv1d"], r=32))


def test_what_cannot_work_raises() -> None:
    with pytest.raises(ValueError, match="QuantizedLinear.* is not supported"):
        adapt(quantize_model(build(), "int8"))
    with pytest.raises(UsageError, match="inputs_embeds was given"):
        build()(ids(), inputs_embeds=torch.zeros(3, 12, 16))
    with pytest.raises(TypeError, match="no argument token_type_ids"):
        build()(ids(), token_type_ids=None)
    with pytest.raises(UsageError, match=r"call model\.generate"):
        build().prepare_inputs_for_generation(ids())
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=16)
    with pytest.raises((ValueError, AttributeError)):
        step(get_peft_model(build(), prompt))
