"""Exported graphs say what the model says: torch.export with our operators or PyTorch's, and ONNX in onnxruntime."""

import doctest
import importlib.util

import pytest
import torch

import adder.models.export
from adder import LanguageModel, LanguageModelConfig, UsageError
from adder.layers import flatten_state
from adder.models import quantize_model
from adder.models.export import export_onnx, export_program

# PyTorch's exporter warns of itself.
pytestmark = [
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]
SIZES = {"vocab_size": 11, "d_model": 16, "n_layer": 2, "d_state": 4}
KINDS = {
    "mamba": {"bias": True},
    "falcon": {"mixer_norm_epsilon": 1e-6, "tie_embeddings": False},
    "mamba2": {"layer": "mamba2", "headdim": 4, "ngroups": 2},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def model(request):
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(**SIZES, **request.param)).eval()


def case(model, batch, length):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 11, (batch, length), generator=generator)
    with torch.no_grad():
        before = model(ids.flip(1), state=model.initial_state(batch)).state
        truth = model(ids, state=before)
    return (
        ids,
        list(flatten_state(before).values()),
        [truth.logits, *flatten_state(truth.state).values()],
    )


@pytest.mark.parametrize("operators", ["adder", "aten"])
@pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 70)])
def test_a_program_is_the_model(model, operators, batch, length):
    ids, before, truth = case(model, batch, length)
    program = export_program(model, batch, length, operators)
    names = {str(node.target) for node in program.graph.nodes}
    assert any("adder." in name for name in names) == (operators == "adder")
    for one, other in zip(program.module()(ids, *before), truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_torch_export_takes_a_model_as_it_is(model):
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        program = torch.export.export(
            model, (ids,), {"state": model.initial_state(1)}, strict=False
        )
    out = program.module()(ids, state=model.initial_state(1))
    torch.testing.assert_close(out.logits, model(ids).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 12)])
def test_onnxruntime_runs_the_file(model, tmp_path, batch, length):
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import onnxruntime

    ids, before, truth = case(model, batch, length)
    export_onnx(model, tmp_path / "model.onnx", batch, length)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [each.name for each in session.get_inputs()]
    assert names == [
        "input_ids",
        *(f"state.{i}.{part}" for i in (0, 1) for part in ("conv", "ssm")),
    ]
    assert [each.name for each in session.get_outputs()] == [
        "logits",
        *(f"next.{name}" for name in names[1:]),
    ]
    feed = {name: each.numpy() for name, each in zip(names, (ids, *before), strict=True)}
    for one, other in zip(session.run(None, feed), truth, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-4)
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"length": -1}, "length -1"),
        ({"operators": "cuda"}, "operators is 'cuda'"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        export_program(model, **options)


def test_rounded_weights_have_no_onnx_file(tmp_path):
    model = quantize_model(LanguageModel(LanguageModelConfig(**SIZES)), "int8")
    with pytest.raises(UsageError, match="the weights are int8"):
        export_onnx(model, tmp_path / "model.onnx")
    if importlib.util.find_spec("onnxscript") is None:
        return
    with pytest.raises(OSError, match="nowhere"):
        export_onnx(LanguageModel(LanguageModelConfig(**SIZES)), tmp_path / "nowhere" / "x.onnx")


def test_the_example_runs():
    assert doctest.testmod(adder.models.export).failed == 0
