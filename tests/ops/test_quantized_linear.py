"""quantize, QuantizedWeight and quantized_linear: every implementation against the reference."""

import doctest
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from implementations import Implementation, bits_for_threads
from inputs import normals
from torch import Tensor

from adder.ops import QuantizedWeight, quantize, quantized_linear
from adder.ops.quantized_linear.reference import quantize_activations, quantized_linear_reference

interface = importlib.import_module("adder.ops.quantized_linear.interface")
weights = importlib.import_module("adder.ops.quantized_linear.weight")

SCHEMES = ["int8", "int4"]
# around a tile of 16 rows and a group of 32 columns
SIZES = [
    (rows, columns) for rows in (1, 15, 16, 17, 80) for columns in (1, 31, 32, 33, 48, 64, 200)
]


def draw(rows: int, columns: int, vectors: int = 5) -> tuple[Tensor, Tensor]:
    """A matrix and vectors whose groups are of very different size."""
    W, x = normals(rows + columns, (rows, columns), (vectors, columns))
    return W * torch.logspace(-3, 3, columns), x * torch.logspace(2, -2, columns)


def by_hand(codes: Tensor, scales: Tensor, rows: int, columns: int, scheme: str) -> Tensor:
    """The matrix, read number by number as the README lays it out."""
    W = torch.empty(rows, columns, dtype=torch.float64)
    for r in range(rows):
        for c in range(columns):
            t, i, g, inside = r // 16, r % 16, c // 32, c % 32
            if scheme == "int8":
                w = int(codes[t, g, inside // 4, i, inside % 4]) - 128
            else:
                byte = int(codes[t, g, inside % 16 // 4, i, inside % 4])
                w = (byte >> 4 if inside >= 16 else byte & 15) - 8
            W[r, c] = w * float(scales[t, g, i])
    return W


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 33), (32, 64)])
def test_layout_is_as_documented(rows: int, columns: int, scheme: Any) -> None:
    q = quantize(draw(rows, columns)[0], scheme)
    expected = by_hand(q.codes, q.scales, rows, columns, scheme)
    assert torch.equal(q.dequantize(torch.float64), expected)
    assert torch.equal(q.dequantize(), expected.float())
    assert q.shape == (rows, columns)
    tiles, groups = -(-rows // 16), -(-columns // 32)
    assert q.nbytes == tiles * groups * 16 * ((32 if scheme == "int8" else 16) + 2)


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_int8_errs_by_half_a_step(rows: int, columns: int) -> None:
    W, _ = draw(rows, columns)
    q = quantize(W, "int8")
    w = q.integers()
    assert int(w.abs().max()) <= 127
    step = q.scales.double().permute(0, 2, 1).flatten(0, 1).unsqueeze(-1).expand(w.shape)
    step = step.flatten(1)[:rows, :columns]
    # 127 steps reach the largest weight but for the scale's own rounding, a 256th: then it is clamped.
    assert ((W - q.dequantize()).abs() <= (0.5 + 2**-20) * step).all()


@pytest.mark.parametrize("spread", ["normal", "one sign", "outlier"])
def test_int4_errs_less_than_plain_rounding(spread: str) -> None:
    (W,) = normals(1, (64, 256))
    W = {"normal": W, "one sign": W.abs(), "outlier": W + 20 * (W > 2.5)}[spread]
    q = quantize(W, "int4")
    assert int(q.integers().min()) >= -8
    groups = W.unflatten(1, (-1, 32))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    got = (W - q.dequantize()).square().unflatten(1, (-1, 32)).sum(-1)
    for place in (-8.0, 7.0):
        scale = largest / place
        plain = (groups - (groups / scale).round().clamp(-8, 7) * scale).square().sum(-1)
        assert got.sum() < plain.sum()
        # A group may lose what the scale's last bits are worth, never more.
        assert (got <= plain + 2**-7 * groups.square().sum(-1) * 2**-4).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_representable_comes_back(scheme: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    most = 127 if scheme == "int8" else 7
    w = torch.randint(-most, most + 1, (20, 71), generator=generator)
    w[:, ::10] = most if scheme == "int8" else -8
    W = (w * 2.0 ** torch.randint(-9, 9, (20, 1), generator=generator)).to(dtype)
    q = quantize(W, scheme)
    assert torch.equal(q.dequantize(dtype), W)
    again = quantize(q.dequantize(), scheme)
    assert torch.equal(again.codes, q.codes)
    assert torch.equal(again.scales, q.scales)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sizes_at_the_ends_of_float32(scheme: Any) -> None:
    (W,) = normals(3, (4, 32))
    W = W / W.abs().max() * torch.tensor([[3e38], [1e-30], [1e-43], [0.0]])
    q = quantize(W, scheme)
    error = (W - q.dequantize()).double().norm(dim=1) / W.double().norm(dim=1)
    assert (error[:2] < 0.12).all()
    assert torch.equal(q.dequantize()[2:], torch.zeros(2, 32))  # below the smallest scale
    assert q.dequantize().isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_those_of_the_matrix(scheme: Any) -> None:
    q = quantize(draw(37, 50)[0], scheme)
    whole = q.dequantize()
    for indices in (
        torch.tensor([[0, 36], [16, 15]]),
        torch.tensor(17),
        torch.tensor([], dtype=int),
    ):
        assert torch.equal(q.row(indices), whole[indices])
    assert q.row(torch.tensor([3]), torch.bfloat16).dtype == torch.bfloat16


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    W, _ = draw(50, 70)
    whole = quantize(W, "int4")
    monkeypatch.setattr(weights, "_BLOCK", 1)
    parts = quantize(W, "int4")
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)


def test_activations_are_rounded_as_defined() -> None:
    """In float32 with one rounding for each division and product, as NumPy has them."""
    _, x = draw(1, 320, vectors=50)
    x = x.bfloat16().float()  # many numbers half-way between two codes
    xq, sx = quantize_activations(x, quantize(torch.ones(1, 320), "int8"))
    groups = x.numpy().reshape(50, 10, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    codes = np.rint(groups * (np.float32(127) / largest))
    assert np.array_equal(xq.numpy(), codes)
    assert np.array_equal(sx.numpy(), (largest / np.float32(127))[..., 0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_product(rows: int, columns: int, with_bias: bool, dtype: torch.dtype, scheme: Any) -> None:
    W, x = draw(rows, columns)
    x, q = x.to(dtype), quantize(W, scheme)
    bias = normals(5, (rows,))[0] if with_bias else None
    got = quantized_linear(x, q, bias)
    assert got.dtype == dtype
    bound = rounding_bound(x, q, bias, dtype)
    error = (got.double() - quantized_linear_reference(x, q, bias).double()).abs()
    assert (error <= bound).all(), f"{(error / bound).max().item():.3g} times the bound"


def rounding_bound(
    x: Tensor, q: QuantizedWeight, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What sums of the same terms in float32 may differ by, and one rounding of the result in its type."""
    xq, sx = quantize_activations(x, q)
    rounded = (xq * sx.unsqueeze(-1)).flatten(-2)[..., : q.columns].double()
    terms = rounded.abs() @ q.dequantize(torch.float64).abs().T
    if bias is not None:
        terms = terms + bias.abs()
    groups = q.scales.shape[1]
    exact = quantized_linear_reference(x, q, bias).double().abs()
    return (
        2 * (groups + 3) * torch.finfo(torch.float32).eps * terms + torch.finfo(dtype).eps * exact
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_error_against_the_exact_product(
    rows: int, columns: int, scheme: Any, implementation: Implementation
) -> None:
    """Each activation is at most half a step of its group's scale away, and nothing else is rounded but the sums."""
    W, x = draw(rows, columns)
    q = quantize(W, scheme)
    exact = x.double() @ q.dequantize(torch.float64).T
    steps = quantize_activations(x, q)[1].double()  # (vectors, groups)
    size = q.dequantize(torch.float64).abs()
    size = torch.nn.functional.pad(size, (0, -columns % 32)).unflatten(1, (-1, 32)).sum(-1)
    bound = (0.5 + 1e-4) * steps @ size.T + rounding_bound(x, q, None, torch.float32)
    got = implementation.of(quantized_linear, quantized_linear_reference)(x, q)
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whole_numbers_are_exact(scheme: Any, implementation: Implementation) -> None:
    """Codes of largest size in one group, where a 16-bit sum of two products would overflow."""
    function = implementation.of(quantized_linear, quantized_linear_reference)
    most, least = (127, -127) if scheme == "int8" else (7, -8)
    w = torch.tensor([[most] * 32, [least] * 32, [most, least] * 16, [least] * 31 + [0]]).float()
    q = quantize(w * (-1 if scheme == "int4" else 1), scheme)
    q = QuantizedWeight(q.codes, q.scales, 4, 32, scheme)
    for x in (
        torch.full((32,), 127.0),
        torch.full((32,), -127.0),
        torch.tensor([127.0, -127] * 16),
    ):
        assert torch.equal(function(x, q).double(), q.dequantize(torch.float64) @ x.double())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_is_alone(scheme: Any, dtype: torch.dtype, implementation: Implementation) -> None:
    """The bits of a row do not depend on the batch around it, and a NaN stays in its own."""
    function = implementation.of(quantized_linear, quantized_linear_reference)
    W, x = draw(50, 100, vectors=133)
    x, q = x.to(dtype), quantize(W, scheme)
    whole = function(x, q)
    for m in (0, 1, 7, 64, 132):
        assert torch.equal(function(x[m : m + 1], q)[0], whole[m]), m
    assert torch.equal(function(x[:5], q), whole[:5])
    for poison in (torch.nan, torch.inf, -torch.inf):
        bad = x.clone()
        bad[3, 70] = poison
        got = function(bad, q)
        assert got[3].isnan().all()
        assert torch.equal(got[4:], whole[4:])
        assert torch.equal(got[:3], whole[:3])


def test_zeros(implementation: Implementation) -> None:
    function = implementation.of(quantized_linear, quantized_linear_reference)
    W, x = draw(3, 40)
    bias = torch.ones(3)
    assert torch.equal(function(x * 0, quantize(W, "int8"), bias), torch.ones(5, 3))
    assert torch.equal(function(x, quantize(W * 0, "int4"), bias), torch.ones(5, 3))
    tiny = torch.full((1, 40), 1e-38)
    assert torch.equal(function(tiny, quantize(W, "int8")), torch.zeros(1, 3))


@pytest.mark.usefixtures("served")
def test_shapes_and_strides() -> None:
    W, x = draw(18, 40, vectors=24)
    q = quantize(W, "int8")
    expected = quantized_linear_reference(x, q)
    close = {"rtol": 1e-5, "atol": 1e-3 * expected.abs().max().item()}
    assert quantized_linear(x[0], q).shape == (18,)
    whole = quantized_linear(x, q)
    torch.testing.assert_close(whole, expected, **close)
    assert torch.equal(quantized_linear(x.view(2, 3, 4, 40), q), whole.view(2, 3, 4, 18))
    assert torch.equal(quantized_linear(x.t().contiguous().t(), q), whole)
    assert torch.equal(quantized_linear(x[::3], q), whole[::3])
    assert torch.equal(quantized_linear(x[:1].expand(4, 40), q), whole[:1].expand(4, 18))
    wide = torch.cat([x, x], dim=1)
    assert torch.equal(quantized_linear(wide[:, 40:], q), whole)


@pytest.mark.usefixtures("served")
def test_autocast_changes_nothing() -> None:
    W, x = draw(18, 40)
    q = quantize(W, "int8")
    expected = quantized_linear(x, q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantized_linear(x, q), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_do_not_change_bits(scheme: Any) -> None:
    W, x = draw(300, 200, vectors=70)
    q = quantize(W, scheme)
    bits_for_threads(lambda: {"y": quantized_linear(x, q), "one": quantized_linear(x[0], q)})


def test_opcheck() -> None:
    W, x = draw(18, 40)
    for scheme, bias in (("int8", None), ("int4", torch.ones(18))):
        q = quantize(W, scheme)  # type: ignore[arg-type]
        arguments = (x, q.codes, q.scales, 18, 40, scheme, bias)
        torch.library.opcheck(torch.ops.adder.quantized_linear.default, arguments)


@pytest.mark.compiles
def test_compiles_whole() -> None:
    W, x = draw(18, 40)
    q = quantize(W, "int4")

    def function(x: Tensor) -> Tensor:
        return quantized_linear(x, q) + q.row(torch.arange(18))[:5, :18]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), function(x))


def test_no_gradients() -> None:
    W, x = draw(3, 40)
    q, x = quantize(W.requires_grad_(), "int8"), x.requires_grad_()
    assert not q.scales.requires_grad
    with pytest.raises(NotImplementedError, match="quantized_linear: x requires a gradient"):
        quantized_linear(x, q)
    with pytest.raises(NotImplementedError, match="quantized_linear: bias requires a gradient"):
        quantized_linear(x.detach(), q, torch.ones(3, requires_grad=True))
    with torch.no_grad():
        assert quantized_linear(x, q).shape == (5, 3)


Q = quantize(torch.ones(20, 40), "int8")
X = torch.ones(2, 40)
REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: quantize(torch.ones(3), "int8"), ValueError, r"weight has shape \(3,\), expected"),
    (lambda: quantize(torch.ones(0, 3), "int8"), ValueError, "both at least 1"),
    (lambda: quantize(torch.ones(2, 3).int(), "int8"), TypeError, "weight is torch.int32"),
    (lambda: quantize([[1.0]], "int8"), TypeError, "weight is a list"),  # type: ignore[arg-type]
    (lambda: quantize(torch.ones(2, 3), "int2"), ValueError, "scheme is 'int2', expected int8 or"),  # type: ignore[arg-type]
    (
        lambda: quantize(torch.tensor([[1.0, torch.nan]]), "int4"),
        ValueError,
        "nan at row 0, column 1",
    ),
    (lambda: quantize(torch.tensor([[1e300]]).double(), "int8"), ValueError, "holds inf at row 0"),
    (lambda: QuantizedWeight(Q.codes, Q.scales, 33, 40, "int8"), ValueError, "codes has shape"),
    (
        lambda: QuantizedWeight(Q.codes, Q.scales, 20, 40, "int4"),
        ValueError,
        "20 rows and 40 columns of int4",
    ),
    (
        lambda: QuantizedWeight(Q.codes, Q.scales[:1], 20, 40, "int8"),
        ValueError,
        "scales has shape",
    ),
    (
        lambda: QuantizedWeight(Q.codes.int(), Q.scales, 20, 40, "int8"),
        TypeError,
        "codes is torch.int32",
    ),
    (
        lambda: QuantizedWeight(Q.codes, Q.scales.float(), 20, 40, "int8"),
        TypeError,
        "scales is torch.float32",
    ),
    (
        lambda: QuantizedWeight(Q.codes, Q.scales.to("meta"), 20, 40, "int8"),
        ValueError,
        "scales is on meta",
    ),
    (lambda: QuantizedWeight(Q.codes, Q.scales, 0, 40, "int8"), ValueError, "rows 0"),
    (lambda: Q.row(torch.tensor([20])), IndexError, "holds 20, expected 0 to 19"),
    (lambda: Q.row(torch.tensor([-1])), IndexError, "holds -1"),
    (lambda: Q.row(torch.tensor([1.0])), TypeError, "indices is torch.float32"),
    (lambda: quantized_linear(X, torch.ones(20, 40)), TypeError, "weight is a Tensor"),  # type: ignore[arg-type]
    (lambda: quantized_linear(X[:, 1:], Q), ValueError, r"x has shape \(2, 39\), expected .* 40"),
    (lambda: quantized_linear(X[:0], Q), ValueError, "axis 0 is empty"),
    (lambda: quantized_linear(torch.tensor(1.0), Q), ValueError, r"x has shape \(\)"),
    (
        lambda: quantized_linear(X.double(), Q),
        TypeError,
        "x is torch.float64, expected torch.float32",
    ),
    (lambda: quantized_linear(X.half(), Q), TypeError, "x is torch.float16"),
    (lambda: quantized_linear(X.int(), Q), TypeError, "x is torch.int32"),
    (lambda: quantized_linear(X.to("meta"), Q), ValueError, "weight is on cpu, expected meta"),
    (lambda: quantized_linear(X, Q, torch.ones(21)), ValueError, r"bias has shape \(21,\)"),
    (lambda: quantized_linear(X, Q, torch.ones(20).double()), TypeError, "bias is torch.float64"),
]


@pytest.mark.refuses
def test_a_weight_that_was_changed_in_place_is_refused() -> None:
    q = quantize(torch.ones(20, 40), "int8")
    q.scales.resize_(1)
    with pytest.raises(ValueError, match=r"quantized_linear: scales has shape \(1,\), expected"):
        quantized_linear(X, q)


@pytest.mark.refuses
@pytest.mark.parametrize(("function", "error", "message"), REFUSED)
def test_refuses(function: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function()


def test_examples_run() -> None:
    for module in (interface, weights):
        result = doctest.testmod(module, extraglobs={"torch": torch, "quantize": quantize})
        assert result.attempted > 0
        assert result.failed == 0
