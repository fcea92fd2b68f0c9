"""linear: F.linear and oneDNN's product against the reference."""

import doctest
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from implementations import bits_for_threads
from inputs import normals
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from adder.ops import linear
from adder.ops.linear import cpu
from adder.ops.linear.reference import linear_reference

interface = importlib.import_module("adder.ops.linear.interface")

# rows, inputs, outputs: around the vectors and the blocks of a matrix product
SIZES = [(1, 1, 1), (2, 3, 5), (17, 16, 33), (64, 80, 48), (37, 129, 65), (130, 48, 260)]


@pytest.fixture(params=["F.linear", "oneDNN"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two for products of any size; oneDNN also where this machine would not choose it."""
    served = request.param == "oneDNN"
    if served and cpu.missing() is not None:
        pytest.skip(str(cpu.missing()))
    monkeypatch.setattr(cpu, "REFUSAL", None if served else "for a test")
    monkeypatch.setattr(cpu, "WORTH", 0)
    monkeypatch.setattr(cpu, "WORTH_TRANSPOSED", 0)
    if served and cpu.refusal() is not None:  # no kernel was registered at import
        monkeypatch.setattr(interface, "_linear", with_gradients())
    return str(request.param)


def with_gradients() -> Callable[..., Tensor]:
    """Return an operator of its own name whose body is oneDNN's product."""
    operator = torch.library.custom_op("adder_test::linear", cpu.forward, mutates_args=())
    operator.register_autograd(interface._backward, setup_context=interface._setup_context)
    return operator


def draw(rows: int, i: int, o: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    x, weight, bias = normals(rows + i + o, (rows, i), (o, i), (o,))
    return {"x": x.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype)}


def test_reference_is_torch_linear() -> None:
    inputs = draw(4, 5, 6, torch.float64)
    torch.testing.assert_close(linear_reference(**inputs), F.linear(*inputs.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "i", "o"), SIZES)
@pytest.mark.usefixtures("product")
def test_forward_and_backward(rows: int, i: int, o: int, dtype: torch.dtype) -> None:
    inputs = draw(rows, i, o, dtype)
    assert_as_good_as_reference(linear, linear_reference, inputs)
    inputs.pop("bias")
    assert_as_good_as_reference(linear, linear_reference, inputs)


@pytest.mark.usefixtures("product")
def test_any_outer_axes_and_strides() -> None:
    x, weight = normals(0, (4, 6, 40), (30, 40))
    changes: list[tuple[Tensor, Tensor]] = [
        (x[0, 0], weight),
        (x[0], weight),
        (x.view(2, 2, 6, 40), weight),
        (x.transpose(0, 1), weight),
        (x[..., ::2], weight[:, ::2]),
        (x[:, :, 3:9], weight[4:, 3:9]),
        (x[:1, :1].expand(3, 5, 40), weight.flip(0)),
        (x[0].t(), x[1, :3].t()[:, :1].expand(40, 6)),
        (x[1].t(), x[0].t()),  # both transposed, as in the weight's gradient
        (torch.randn(40, 300).t(), torch.randn(40, 3).t()),  # swapped: x is much the larger
    ]
    for x, weight in changes:
        assert_as_good_as_reference(linear, linear_reference, {"x": x, "weight": weight})
        y = linear(x, weight)
        assert y.is_contiguous()
        assert y.shape == (*x.shape[:-1], weight.shape[0])


@pytest.mark.usefixtures("product")
def test_only_the_gradients_that_are_wanted() -> None:
    x, weight, bias = draw(6, 7, 8).values()
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
        linear(x, weight, bias).sum().backward()
        assert leaf.grad is not None
        assert sum(each.grad is not None for each in (x, weight, bias)) == 1
        leaf.grad = None
        leaf.requires_grad_(False)


@pytest.mark.usefixtures("product")
def test_a_nan_stays_in_its_row() -> None:
    x, weight, bias = draw(40, 32, 48).values()
    x[7, 3] = torch.nan
    y = linear(x, weight, bias)
    assert y[7].isnan().all()
    assert y[[i for i in range(40) if i != 7]].isfinite().all()


def test_which_products_onednn_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "REFUSAL", None)
    large, weight = torch.empty(2**8, 2**8), torch.empty(2**8, 2**8)
    assert cpu.serves(large, weight)
    assert not cpu.serves(large[1:], weight)
    assert not cpu.serves(large.t(), weight)
    assert cpu.serves(large.t(), weight.repeat(4, 1))
    for other in (large.double(), large.bfloat16(), large.to("meta")):
        assert not cpu.serves(other, weight.to(other))
    monkeypatch.setattr(cpu, "REFUSAL", "an Intel processor")
    assert not cpu.serves(large, weight)


def test_why_onednn_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor, another schema, no oneDNN: each has its own words."""
    amd = {"cpu_name": "AMD EPYC", "avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: amd, raising=False)
    assert cpu.refusal() == cpu.missing()
    for other in ({"cpu_name": "Intel Xeon", "avx512_f": True}, {**amd, "avx512_f": False}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda other=other: other, raising=False)
        assert "faster only on AMD" in str(cpu.refusal())
    monkeypatch.setattr(cpu, "SCHEMA", "mkldnn::_linear_pointwise(Tensor X) -> Tensor")
    assert "_linear_pointwise" in str(cpu.missing()) or "without oneDNN" in str(cpu.missing())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu.missing() == "this PyTorch was built without oneDNN"


@pytest.mark.usefixtures("product")
def test_torch_may_switch_onednn_off() -> None:
    inputs = draw(20, 30, 40)
    expected = linear(**inputs)
    before = torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_mkldnn_enabled(
            False
        )  # what torch.backends.mkldnn.flags sets, without its warning
        torch.testing.assert_close(linear(**inputs), expected)
    finally:
        torch._C._set_mkldnn_enabled(before)


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.usefixtures("product")
def test_autocast_has_its_say_in_the_forward_pass_alone(backward_inside: bool) -> None:
    x, weight, bias = (each.requires_grad_() for each in draw(20, 30, 40).values())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
        assert linear(x.bfloat16(), weight).dtype == torch.bfloat16
    y = linear(x, weight, bias)
    expected = torch.autograd.grad(F.linear(x, weight, bias).sum(), (x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16, enabled=backward_inside):
        got = torch.autograd.grad(y.sum(), (x, weight, bias))
    if product_is_our_own(y):
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def product_is_our_own(y: Tensor) -> bool:
    """F.linear's own backward pass does as PyTorch does."""
    return "adder" in type(y.grad_fn).__name__


def test_threads_do_not_change_bits(product: str) -> None:
    """Measured for oneDNN, which does not promise it: see docs/numerics.md."""
    if product == "F.linear":
        pytest.skip("MKL's bits do change, for narrow matrices")
    for rows, i, o in ((512, 768, 384), (300, 96, 48), (130, 24, 768)):
        inputs = draw(rows, i, o)
        bits_for_threads(lambda inputs=inputs: evaluate(linear, inputs))  # type: ignore[misc]


def test_gradcheck() -> None:
    inputs = [each.requires_grad_() for each in draw(3, 4, 5, torch.float64).values()]
    operator = torch.ops.adder.linear
    for function in (linear, operator):
        assert gradcheck(function, inputs)
        assert gradcheck(lambda x, w, f=function: f(x[0], w, None), inputs[:2])
        assert gradgradcheck(function, inputs)


def test_opcheck() -> None:
    forward = torch.ops.adder.linear.default
    x, weight, bias = draw(64, 300, 1000).values()
    for given in (
        (x, weight, bias),
        (x.view(2, 32, 300), weight, None),
        (x.t(), weight[:, :64], None),
        (weight.t(), x.t()[:, :1].expand(300, 1000), None),
    ):
        leaves = (each if each is None else each.detach().requires_grad_() for each in given)
        # Strides, and so whose product it is, may differ: sums of 1000 products of about 1.
        torch.library.opcheck(forward, tuple(leaves), rtol=1e-5, atol=1e-3)


@pytest.mark.compiles
@pytest.mark.usefixtures("product")
def test_compiles_whole() -> None:
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    inputs = draw(20, 30, 40)
    got, expected = evaluate(compiled, inputs), evaluate(linear, inputs)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.usefixtures("product")
def test_a_device_without_autocast() -> None:
    x, weight, bias = (each.to("meta").requires_grad_() for each in draw(20, 30, 40).values())
    for function in (linear, torch.ops.adder.linear):
        y = function(x, weight, bias)
        assert (y.shape, y.device.type) == ((20, 40), "meta")
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert (dx.shape, dweight.shape) == (x.shape, weight.shape)


X, W = torch.ones(2, 3), torch.ones(5, 3)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(()), W), ValueError, r"x has shape \(\)"),
        ((X[:0], W), ValueError, r"x has shape \(0, 3\), expected .* none of them empty"),
        ((X.int(), W), TypeError, "x is torch.int32"),
        (([1.0], W), TypeError, "x is a list"),
        ((X, W[0]), ValueError, r"weight has shape \(3,\), expected 2 axes"),
        ((X, W[:0]), ValueError, "axis o is empty"),
        ((X, W[:, :2]), ValueError, r"x has shape \(2, 3\), expected \(..., i\) with i = 2"),
        ((X, W.double()), TypeError, "weight is torch.float64, expected torch.float32"),
        ((X, W.to("meta")), ValueError, "weight is on meta, expected cpu"),
        ((X, W, torch.ones(4)), ValueError, r"bias has shape \(4,\), expected \(o\) = \(5,\)"),
        ((X, W, torch.ones(5).half()), TypeError, "bias is torch.float16"),
    ],
)
def test_refuses(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"linear: .*{message}"):
        linear(*arguments)


def test_examples_run() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
