"""Language models with int8 and int4 weights: made, stored, moved, and refused where they would be wrong."""

import copy
import doctest
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adder import DamagedFile, LanguageModel, LanguageModelConfig, UsageError
from adder.layers import QuantizedEmbedding, QuantizedLinear
from adder.models import quantize_model
from adder.models.checkpoint import model_tensors

SCHEMES = ["int8", "int4"]


def model(**options: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "d_model": 48, "n_layer": 2, **options}
    made = LanguageModel(LanguageModelConfig(**sizes)).eval()
    with torch.no_grad():  # so that logits depend on the text
        made.backbone.embedding.weight.mul_(30)
    return made


IDS = torch.randint(0, 50, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "options", [{}, {"tie_embeddings": False, "bias": True, "conv_bias": False}]
)
def test_near_the_float_model_which_is_not_changed(scheme: Any, options: dict[str, Any]) -> None:
    given = model(**options)
    before = copy.deepcopy(given.state_dict())
    small = quantize_model(given, scheme)
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    expected, got = given(IDS).logits, small(IDS).logits
    assert got.shape == expected.shape
    error = (got - expected).norm() / expected.norm()
    assert 0 < error < {"int8": 0.03, "int4": 0.15}[scheme]
    assert not got.requires_grad
    assert not small.training
    memory = {t.data_ptr() for t in given.state_dict().values()}
    assert memory.isdisjoint(t.data_ptr() for t in small.state_dict().values())


def test_which_matrix_is_stored_how() -> None:
    small = quantize_model(model(tie_embeddings=False), "int4")
    schemes = {
        name.rpartition(".")[2]: each.scheme
        for name, each in small.named_modules()
        if isinstance(each, QuantizedLinear | QuantizedEmbedding)
    }
    assert schemes == {
        **{"in_proj": "int4", "out_proj": "int4", "x_proj": "int8", "dt_proj": "int8"},
        **{"embedding": "int8", "lm_head": "int8"},
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tie", [True, False])
def test_stored_bit_for_bit(tmp_path: Path, scheme: Any, tie: bool) -> None:
    small = quantize_model(model(tie_embeddings=tie, bias=True), scheme)
    small.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(tmp_path)
    assert again.config == small.config
    assert again.config.weights == scheme
    assert again.state_dict().keys() == small.state_dict().keys()
    for name, tensor in small.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        assert tensor.dtype == again.state_dict()[name].dtype
    assert torch.equal(again(IDS).logits, small(IDS).logits)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tie)
    assert stored["backbone.layers.0.mixer.in_proj.scales"].dtype == torch.bfloat16
    assert sum(each.numel() for each in stored.values()) == small.config.stored_count()


def test_a_float_model_is_stored_as_before(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path, "adder")
    assert "weights" not in json.loads((tmp_path / "config.json").read_text())["model"]
    assert LanguageModel.from_pretrained(tmp_path).config.weights == "float"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_steps_are_the_whole(scheme: Any) -> None:
    small = quantize_model(model(), scheme)
    whole = small(IDS).logits
    state, steps = small.initial_state(2), []
    for t in range(IDS.shape[1]):
        _, logits, state = small(IDS[:, t : t + 1], state=state)  # type: ignore[assignment]
        steps.append(logits)
    torch.testing.assert_close(
        torch.cat(steps, 1), whole, rtol=0, atol=5e-3 * whole.abs().max().item()
    )
    assert small.generate(IDS, 3, temperature=0.0).shape == (2, 33)


@pytest.mark.parametrize("tie", [True, False])
def test_moves_keep_codes_scales_and_the_tie(tie: bool) -> None:
    small = quantize_model(model(tie_embeddings=tie), "int8")
    before = {name: each.clone() for name, each in small.state_dict().items()}
    expected = small(IDS).logits
    for moved in (small.to("cpu"), small.double().float(), small.float(), copy.deepcopy(small)):
        assert (moved.lm_head.weight is moved.backbone.embedding.weight) == tie
        if tie:
            assert moved.lm_head.scales is moved.backbone.embedding.scales
        for name, tensor in moved.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert torch.equal(moved(IDS).logits, expected)
    with pytest.raises(TypeError, match="torch.float64, expected torch.float32"):
        small.double()(IDS)


def test_memory_of_an_int4_model() -> None:
    given = model(d_model=256, n_layer=2, vocab_size=64)
    sizes = [
        sum(each.nbytes for each in model_tensors(one).values())
        for one in (given, quantize_model(given, "int8"), quantize_model(given, "int4"))
    ]
    assert sizes[0] > 3 * sizes[1] > 4 * sizes[2]


@pytest.mark.compiles
def test_compiles_whole() -> None:
    small = quantize_model(model(), "int4")
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS).logits, small(IDS).logits)


def test_training_is_refused() -> None:
    small = quantize_model(model(), "int8")
    assert not any(each.requires_grad for each in small.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        small(IDS, labels=IDS).loss.backward()
    small.requires_grad_()
    with pytest.raises(NotImplementedError, match="requires a gradient"):
        small(IDS)


def test_refused_by_name() -> None:
    given = model()
    with pytest.raises(UsageError, match="scheme is 'int2'"):
        quantize_model(given, "int2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="weights are int8 already"):
        quantize_model(quantize_model(given, "int8"), "int4")
    with pytest.raises(UsageError, match="weights is 'int2', expected one of float, int8, int4"):
        LanguageModelConfig(vocab_size=5, weights="int2")  # type: ignore[arg-type]
    for name in ("backbone.layers.1.mixer.x_proj", "backbone.embedding", "backbone.norm_f"):
        broken = copy.deepcopy(given)
        with torch.no_grad():
            broken.get_submodule(name).weight.view(-1)[-1] = torch.inf  # type: ignore[operator, union-attr]
        with pytest.raises(UsageError, match=f"quantize_model: {name}"):
            quantize_model(broken, "int8")


def test_a_tied_head_of_its_own_is_not_dropped() -> None:
    given = model()
    given.lm_head.weight = nn.Parameter(given.lm_head.weight.detach().clone())
    with pytest.raises(UsageError, match=r"lm_head.weight is not backbone.embedding.weight"):
        quantize_model(given, "int8")
    given = model(tie_embeddings=False)  # shared all the same: both are rounded
    given.lm_head.weight = given.backbone.embedding.weight
    small = quantize_model(given, "int8")
    assert torch.equal(small.lm_head.weight, small.backbone.embedding.weight)


class Wrapped(nn.Module):
    """What low-rank fine-tuning puts in the place of a projection."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x)  # type: ignore[no-any-return]


def test_a_changed_model_is_refused_by_name() -> None:
    given = model(tie_embeddings=False)
    mixer = given.backbone.layers[1].mixer
    for holder, name in ((mixer, "in_proj"), (given.backbone, "embedding"), (given, "lm_head")):
        before = getattr(holder, name)
        setattr(holder, name, Wrapped(before))
        with pytest.raises(UsageError, match=rf"{name} is a Wrapped, .*: merge adapters first"):
            quantize_model(given, "int8")
        setattr(holder, name, before)
    mixer.x_proj.lora = nn.Linear(2, 3)
    with pytest.raises(UsageError, match=r"layers.1.mixer.x_proj.lora is a module .* merge adapt"):
        quantize_model(given, "int8")
    del mixer.x_proj.lora
    mixer.x_proj.lora_A = nn.Parameter(torch.ones(2))
    with pytest.raises(UsageError, match=r"x_proj.lora_A is \(2,\), expected nothing"):
        quantize_model(given, "int8")
    del mixer.x_proj.lora_A
    given.lm_head = nn.Linear(48, given.config.padded_vocab_size)
    with pytest.raises(UsageError, match=r"lm_head.bias is .*, expected nothing"):
        quantize_model(given, "int8")
    given.lm_head = nn.Linear(48, given.config.padded_vocab_size, bias=False)
    mixer.D = nn.Parameter(torch.ones(1))
    with pytest.raises(UsageError, match=r"layers.1.mixer.D is \(1,\), expected \(96,\)"):
        quantize_model(given, "int8")
    del given.backbone.layers[1]
    with pytest.raises(UsageError, match=r"layers.1.mixer.A_log is nothing, expected \(96, 16\)"):
        quantize_model(given, "int8")


def test_a_model_on_the_meta_device() -> None:
    for one in (model(), quantize_model(model(), "int8")):
        assert one.to("meta")(IDS.to("meta")).logits.shape == (2, 30, 50)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    quantize_model(model(), "int8").save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["model"].update(changes)
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "changes", [{"weights": "float"}, {"weights": "int4"}, {"d_model": 10**5, "n_layer": 99}]
)
def test_a_config_of_another_model_is_refused_before_memory_is_taken(
    folder: Path, changes: dict[str, Any]
) -> None:
    change(folder, **changes)
    with pytest.raises(
        DamagedFile, match=r"holds \d+ numbers, and .* asks for|weights is .* written with"
    ):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_cut_file_is_damaged(folder: Path, length: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(DamagedFile, match="model.safetensors"):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("backbone.embedding.weight", torch.float32),
        ("backbone.embedding.weight", torch.int8),
        ("backbone.layers.0.mixer.dt_proj.scales", torch.float32),
        ("backbone.layers.0.mixer.D", torch.int32),
    ],
)
def test_a_tensor_of_another_type_is_named(folder: Path, name: str, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DamagedFile, match=f"{name} is {dtype}, expected"):
        LanguageModel.from_pretrained(folder)


def test_an_unknown_scheme_in_a_config_is_named(folder: Path) -> None:
    change(folder, weights="int3")
    with pytest.raises(DamagedFile, match="weights is 'int3'"):
        LanguageModel.from_pretrained(folder)


def test_examples_run() -> None:
    module = importlib.import_module("adder.models.quantized")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
