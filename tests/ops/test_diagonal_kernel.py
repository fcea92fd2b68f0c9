"""diagonal_kernel: every implementation against the reference."""

import doctest
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from implementations import bits_for_threads, serving
from inputs import normals
from tolerance import ROUNDING, assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck

from adder.ops import diagonal_kernel
from adder.ops.diagonal_kernel.reference import diagonal_kernel_reference

interface = importlib.import_module("adder.ops.diagonal_kernel.interface")
METHODS = ["zoh", "bilinear", "dss"]
DTYPES = [torch.complex64, torch.complex128, torch.float32, torch.float64]

# The reference is in double whatever comes in, so all that it errs in float32 is the last rounding. The kernels round
# two tables of powers, multiply, and add up to 2 m or 32 such products in float32.
FACTOR = 16

# c, h, m, length: around S (16, 32, 64 and 128 steps) and its squares, vectors of modes, primes
SIZES = [
    (1, 1, 1, 1),
    (2, 1, 3, 2),
    (1, 3, 5, 15),
    (3, 2, 4, 16),
    (1, 2, 32, 17),
    (2, 5, 9, 256),
    (1, 2, 3, 257),
    (3, 4, 16, 1000),
    (1, 1, 7, 1031),
]


def draw(
    c: int,
    h: int,
    m: int,
    length: int,
    *,
    dtype: torch.dtype = torch.complex64,
    method: str = "zoh",
    by_mode: bool = True,
) -> dict[str, Any]:
    """Modes that fade over a few to some hundred steps; with dss, every other one grows."""
    real = dtype.to_real()
    decay, angle, B, B_im, steps = normals(m + length, *[(h, m)] * 5)
    C, C_im = normals(m + length + 1, *[(c, h, m)] * 2)
    A = -(0.1 + decay.abs())
    if method == "dss":
        A = A * torch.tensor([1.0, -1.0]).repeat(m)[:m]
    if dtype.is_complex:
        A, B, C = torch.complex(A, 30 * angle), torch.complex(B, B_im), torch.complex(C, C_im)
    dt = 0.01 + 0.05 * steps.tanh().abs()
    return {
        **{"A": A.to(dtype), "B": B.to(dtype), "C": C.to(dtype)},
        "dt": (dt if by_mode else dt[:, 0].contiguous()).to(real),
        **{"length": length, "method": method},
    }


def compare(inputs: dict[str, Any], *, without: str = "", rounding: float = ROUNDING) -> None:
    """Hold the public function against the reference, all gradients but that of `without`."""
    kept = {name: each for name, each in inputs.items() if name != without}
    rest = {name: each for name, each in inputs.items() if name == without}
    assert_as_good_as_reference(
        partial(_mixed, diagonal_kernel, rest),
        partial(_mixed, diagonal_kernel_reference, rest),
        kept,
        factor=FACTOR,
        rounding=rounding,
    )


def _mixed(function: Callable[..., Tensor], rest: dict[str, Tensor], **inputs: Any) -> Tensor:
    """Call with what is not differentiated by in the types of what is."""
    wide = inputs["A"].dtype in (torch.float64, torch.complex128)
    return function(**inputs, **{k: x.double() if wide else x for k, x in rest.items()})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("c", "h", "m", "length"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(c: int, h: int, m: int, length: int, dtype: torch.dtype) -> None:
    compare(draw(c, h, m, length, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["bilinear", "dss"])
@pytest.mark.parametrize(("c", "h", "m", "length"), SIZES[::3])
@pytest.mark.usefixtures("served", "poisoned")
def test_other_methods(
    c: int, h: int, m: int, length: int, method: str, dtype: torch.dtype
) -> None:
    inputs = draw(c, h, m, length, dtype=dtype, method=method)
    # With dss one step is a softmax over one number: the truth about dt is 0, and has no size to compare with.
    compare(inputs, without="dt" if method == "dss" and length == 1 else "")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64])
@pytest.mark.parametrize("length", [16383, 16384, 16385])
@pytest.mark.usefixtures("poisoned")
def test_lengths_around_a_block(length: int, dtype: torch.dtype) -> None:
    """Slow modes, that are still there at the end. The reference walks through time: it is asked once."""
    inputs = draw(2, 1, 2, length, dtype=dtype)
    inputs["dt"] = inputs["dt"] / 100
    compare(inputs)


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    wide = draw(2, 8, 24, 40, dtype=torch.complex128)

    def check(change: Callable[[Tensor], Tensor]) -> None:
        compare({k: change(x) if isinstance(x, Tensor) else x for k, x in wide.items()})

    check(lambda x: x[..., ::2, 3:20])
    check(lambda x: x.transpose(-1, -2))
    check(lambda x: x[..., :1].expand(*x.shape[:-1], 9))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("served")
def test_a_step_for_each_channel_is_shared_by_its_modes(method: str) -> None:
    inputs = draw(2, 3, 4, 50, dtype=torch.complex128, method=method, by_mode=False)
    shared = evaluate(diagonal_kernel, inputs)
    inputs["dt"] = inputs["dt"].unsqueeze(1).expand(-1, 4)
    each = evaluate(diagonal_kernel, inputs)
    terms = each.pop("gradient of dt")
    sums = shared.pop("gradient of dt")
    assert ((terms.sum(1) - sums).abs() <= 1e-14 * terms.abs().sum(1)).all()
    assert all(torch.equal(shared[name], each[name]) for name in each)


@pytest.mark.usefixtures("served")
def test_a_gradient_of_any_strides() -> None:
    inputs = draw(2, 3, 4, 33)
    leaves = [inputs[name].requires_grad_() for name in ("A", "B", "C", "dt")]
    K = diagonal_kernel(*leaves, 33)
    given = torch.randn(33, 3, 2).permute(2, 1, 0)
    for gradient in (given, torch.ones(()).expand(K.shape)):
        got = torch.autograd.grad(K, leaves, gradient, retain_graph=True)
        same = torch.autograd.grad(K, leaves, gradient.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))


@pytest.mark.usefixtures("served")
def test_types_may_be_mixed_within_a_kind() -> None:
    """The output has the real type of C; each gradient has the type of what it belongs to."""
    inputs = draw(1, 2, 3, 20, dtype=torch.complex128)
    inputs["C"] = inputs["C"].to(torch.complex64)
    results = evaluate(diagonal_kernel, inputs)
    types = [each.dtype for each in results.values()]
    one, two = torch.complex64, torch.complex128
    assert types == [torch.float32, two, two, one, torch.float64]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.complex128, torch.float64])
@pytest.mark.parametrize("by_mode", [False, True])
@pytest.mark.usefixtures("served")
def test_gradcheck(method: str, dtype: torch.dtype, by_mode: bool) -> None:
    inputs = draw(2, 2, 3, 7, dtype=dtype, method=method, by_mode=by_mode)
    leaves = [inputs[name].requires_grad_() for name in ("A", "B", "C", "dt")]
    assert gradcheck(partial(diagonal_kernel, length=7, method=method), leaves)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64])
def test_threads_do_not_change_bits(dtype: torch.dtype) -> None:
    bits_for_threads(lambda: evaluate(diagonal_kernel, draw(2, 3, 5, 40000, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_opcheck(dtype: torch.dtype, method: str) -> None:
    inputs = draw(2, 2, 3, 7, dtype=dtype, method=method)
    A, B, C, dt = (inputs[name].requires_grad_() for name in ("A", "B", "C", "dt"))
    torch.library.opcheck(torch.ops.adder.diagonal_kernel.default, (A, B, C, dt, 7, method))
    given = (*(each.detach() for each in (A, B, C, dt)), 7, method, torch.randn(2, 2, 7))
    torch.library.opcheck(torch.ops.adder.diagonal_kernel_backward.default, given)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("implementation", ["portable", "as installed"])
def test_compiles_whole(implementation: str, method: str, dtype: torch.dtype) -> None:
    """Conjugates come in lazily, as from a model with the other sign of Im A."""

    def conjugated(A: Tensor, B: Tensor, C: Tensor, dt: Tensor, **options: Any) -> Tensor:
        return diagonal_kernel(A.conj(), B.conj(), C.conj(), dt, **options)

    inputs = draw(2, 2, 3, 9, dtype=dtype, method=method)
    compiled = torch.compile(conjugated, fullgraph=True, backend="aot_eager")

    def check() -> None:
        got, expected = evaluate(compiled, inputs), evaluate(conjugated, inputs)
        for name in expected:
            assert torch.equal(got[name], expected[name]), name

    if implementation == "as installed":
        check()
    else:
        with serving(implementation):
            check()


@pytest.mark.compiles
def test_compiles_for_any_length() -> None:
    compiled = torch.compile(diagonal_kernel, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs = draw(1, 2, 3, 9)
    for length in (9, 17, 40):
        inputs["length"] = length
        assert torch.equal(compiled(**inputs), diagonal_kernel(**inputs))


ones = torch.ones
A, B, C, DT = -ones(2, 3), ones(2, 3), ones(1, 2, 3), ones(2)
Z = A.to(torch.complex64)
REFUSED = [
    ((ones(3), B, C, DT, 4), {}, ValueError, r"A has shape \(3,\), expected 2 axes"),
    ((A[:, :0], B, C, DT, 4), {}, ValueError, "axis m is empty"),
    ((A.int(), B, C, DT, 4), {}, TypeError, "A is torch.int32, expected torch.float32 or"),
    ((A, ones(2, 4), C, DT, 4), {}, ValueError, r"B has shape .* \(h, m\) = \(2, 3\)"),
    ((A, B, ones(2, 3), DT, 4), {}, ValueError, r"C has shape \(2, 3\), expected 3 axes \(c, h, m"),
    ((A, B, ones(1, 3, 2), DT, 4), {}, ValueError, r"C has shape .* = \(1, 2, 3\)"),
    ((A, B, C, ones(3), 4), {}, ValueError, r"dt has shape \(3,\), expected \(h\) = \(2,\)"),
    ((A, B, C, ones(2, 1), 4), {}, ValueError, r"dt has shape .* \(h, m\) = \(2, 3\)"),
    ((Z, B, C, DT, 4), {}, TypeError, "B is torch.float32, expected torch.complex64 or"),
    ((A, B, C + 0j, DT, 4), {}, TypeError, "C is torch.complex64, expected torch.float32 or"),
    ((A, B, C, DT + 0j, 4), {}, TypeError, "dt is torch.complex64, expected torch.float32 or"),
    ((A, B, C.to("meta"), DT, 4), {}, ValueError, "C is on meta, expected cpu"),
    ((A, B, C, DT, 0), {}, ValueError, "length is 0, expected at least 1"),
    ((A, B, C, DT, 4.0), {}, TypeError, "length is 4.0, a float, expected a whole number"),
    ((A, B, C, DT, 4), {"method": "euler"}, ValueError, "method is 'euler', expected one of zoh"),
    ((A, B, C, 0 * DT, 4), {}, ValueError, "dt has the value 0, expected positive"),
    ((A, B, C, DT * torch.nan, 4), {}, ValueError, "dt has the value nan, expected positive"),
    ((0 * A, B, C, DT, 4), {"method": "dss"}, ValueError, r"A\[0, 0\] is 0, where .* a pole"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "error", "message"), REFUSED)
@pytest.mark.usefixtures("served")
def test_refuses(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"diagonal_kernel: .*{message}"):
        diagonal_kernel(*args, **options)


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
