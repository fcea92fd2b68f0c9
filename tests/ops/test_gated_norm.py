"""rms_norm and gated_norm: every implementation against the reference."""

import doctest
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from implementations import Implementation, bits_for_threads
from inputs import normals
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from adder.ops import gated_norm, rms_norm
from adder.ops.gated_norm.reference import gated_norm_reference, rms_norm_reference

interface = importlib.import_module("adder.ops.gated_norm.interface")

# around vectors (4, 8, 16 lanes), four of them, and blocks of rows (32)
SIZES = [(1, 1), (2, 3), (31, 15), (32, 16), (33, 17), (7, 63), (16, 65), (67, 131)]
EPS = 1e-5


def draw(*shape: int, dtype: torch.dtype = torch.float32, mixed: bool = True) -> dict[str, Any]:
    """The weight is in the type of arithmetic, or in y's own if not `mixed`."""
    y, z, weight = normals(sum(shape), shape, shape, shape[-1:])
    parameters = torch.promote_types(dtype, torch.float32) if mixed else dtype
    return {"y": y.to(dtype), "z": z.to(dtype), "weight": weight.to(dtype).to(parameters)}


def plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"x": inputs["y"], "weight": inputs["weight"]}


def test_reference_is_torch_rms_norm() -> None:
    inputs = draw(3, 5, 7, dtype=torch.float64)
    expected = F.rms_norm(inputs["y"], (7,), inputs["weight"], EPS)
    got = rms_norm_reference(inputs["y"], inputs["weight"], eps=EPS)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "channels"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(length: int, channels: int, dtype: torch.dtype) -> None:
    inputs = draw(2, length, channels, dtype=dtype)
    assert_as_good_as_reference(
        partial(rms_norm, eps=EPS), partial(rms_norm_reference, eps=EPS), plain(inputs)
    )
    assert_as_good_as_reference(
        partial(gated_norm, eps=EPS), partial(gated_norm_reference, eps=EPS), inputs
    )


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [None, 1, 3, 17, 51])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(51,), (5, 51), (2, 5, 51), (2, 3, 4, 51)])
@pytest.mark.usefixtures("served", "poisoned")
def test_every_way_to_call(
    norm_before_gate: bool,
    group_size: int | None,
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> None:
    options = {"eps": EPS, "group_size": group_size, "norm_before_gate": norm_before_gate}
    assert_as_good_as_reference(
        partial(gated_norm, **options),
        partial(gated_norm_reference, **options),
        draw(*shape, dtype=dtype, mixed=False),
    )


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    wide = draw(4, 26, 40, dtype=torch.float64)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: x[::2, :, 3:20],
        lambda x: x.transpose(1, 2),
        lambda x: x.transpose(0, 1),
        lambda x: x[..., ::3],
        lambda x: x[:1, :1].expand(3, 5, -1),
        lambda x: x.view(4, 2, 13, 40).transpose(1, 2),
    ]
    for change in changes:
        y, z = change(wide["y"]), change(wide["z"]).flip(0)
        inputs = {"y": y, "z": z, "weight": wide["weight"].repeat(2)[: 2 * y.shape[-1] : 2]}
        assert_as_good_as_reference(
            partial(gated_norm, eps=EPS), partial(gated_norm_reference, eps=EPS), inputs
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 100, 1e8])
@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.usefixtures("served")
def test_gates_far_from_zero(dtype: torch.dtype, size: float, norm_before_gate: bool) -> None:
    inputs = draw(2, 40, 17, dtype=dtype)
    inputs["z"] = inputs["z"] * size
    options = {"eps": EPS, "norm_before_gate": norm_before_gate}
    assert_as_good_as_reference(
        partial(gated_norm, **options), partial(gated_norm_reference, **options), inputs
    )


def test_rows_are_alone(implementation: Implementation) -> None:
    inputs = draw(1, 40, 9, dtype=torch.float64)
    inputs["y"][:, 7] = torch.nan
    function = implementation.of(gated_norm, gated_norm_reference)
    results = evaluate(partial(function, eps=EPS), inputs)
    others = [i for i in range(40) if i != 7]
    for name in ("output 0", "gradient of y", "gradient of z"):
        assert results[name][:, others].isfinite().all(), name


def test_zeros_stay_zeros(implementation: Implementation) -> None:
    function = implementation.of(rms_norm, rms_norm_reference)
    inputs = {"x": torch.zeros(2, 5), "weight": torch.ones(5)}
    results = evaluate(partial(function, eps=1e-12), inputs)
    assert torch.equal(results["output 0"], torch.zeros(2, 5))
    assert results["gradient of x"].isfinite().all()


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.usefixtures("served")
def test_gradcheck(norm_before_gate: bool, group_size: int | None) -> None:
    inputs = [each.requires_grad_() for each in draw(2, 3, 6, dtype=torch.float64).values()]
    options = {"eps": EPS, "group_size": group_size, "norm_before_gate": norm_before_gate}
    assert gradcheck(partial(gated_norm, **options), inputs)
    assert gradcheck(partial(rms_norm, eps=EPS), inputs[::2])


@pytest.mark.usefixtures("served")
def test_tiny_rows_have_gradients() -> None:
    """Without eps the scale of a row near 1e-20 is representable, and its square is not."""
    (x,) = normals(0, (3, 16))
    x = (x * 3e-20).requires_grad_()
    (got,) = torch.autograd.grad(rms_norm(x, torch.ones(16), eps=0.0)[:, 0].sum(), x)
    wide = x.detach().double().requires_grad_()
    truth = rms_norm_reference(wide, torch.ones(16).double(), eps=0.0)
    (expected,) = torch.autograd.grad(truth[:, 0].sum(), wide)
    torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-2 * expected.max().item())


@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_threads_do_not_change_bits(norm_before_gate: bool) -> None:
    inputs = draw(3, 300, 83)
    function = partial(gated_norm, eps=EPS, norm_before_gate=norm_before_gate)
    bits_for_threads(lambda: evaluate(function, inputs))


def test_opcheck() -> None:
    y, z, weight = (each.requires_grad_() for each in draw(2, 7, 6).values())
    forward = torch.ops.adder.gated_norm.default
    torch.library.opcheck(forward, (y, z, weight, EPS, 3, True))
    torch.library.opcheck(forward, (y, None, weight, EPS, 6, False))
    y, z, weight = y.detach(), z.detach(), weight.detach()
    backward = torch.ops.adder.gated_norm_backward.default
    torch.library.opcheck(backward, (y, z, weight, EPS, 3, True, y.clone()))
    torch.library.opcheck(backward, (y, None, weight, EPS, 6, False, y.clone()))


@pytest.mark.compiles
def test_compiles_whole() -> None:
    function = partial(gated_norm, eps=EPS, group_size=3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = draw(2, 9, 6)
    got, expected = evaluate(compiled, inputs), evaluate(function, inputs)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


ones = torch.ones
X, W = ones(2, 3, 4), ones(4)
REFUSED = [
    ((ones(()), W), {}, ValueError, "x has shape"),
    ((ones(2, 0, 4), W), {}, ValueError, "axis 1 is empty"),
    ((X.int(), W), {}, TypeError, "x is torch.int32"),
    ((X, ones(5)), {}, ValueError, r"weight has shape \(5,\), expected \(d\) = \(4,\)"),
    ((X, W.double()), {}, TypeError, "weight is torch.float64, expected torch.float32"),
    ((X, W.to("meta")), {}, ValueError, "weight is on meta, expected cpu"),
    ((X, W), {"eps": -1.0}, ValueError, "eps is -1.0"),
    ((X, W), {"eps": float("nan")}, ValueError, "eps is nan"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "error", "message"), REFUSED)
def test_rms_norm_refuses(
    args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"rms_norm: .*{message}"):
        rms_norm(*args, **{"eps": EPS, **options})


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (
            (X, ones(2, 3, 5), W),
            {},
            ValueError,
            r"z has shape \(2, 3, 5\), expected .* \(2, 3, 4\)",
        ),
        ((X, X.double(), W), {}, TypeError, "z is torch.float64"),
        ((X, X, ones(3)), {}, ValueError, "weight has shape"),
        ((X, X, W), {"group_size": 3}, ValueError, "group_size is 3, expected a divisor of d = 4"),
        ((X, X, W), {"group_size": 0}, ValueError, "group_size is 0"),
        ((X, X, W), {"eps": float("inf")}, ValueError, "eps is inf"),
    ],
)
def test_gated_norm_refuses(
    args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"gated_norm: .*{message}"):
        gated_norm(*args, **{"eps": EPS, **options})


def test_examples_run() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
