"""short_convolution: every implementation against the reference."""

import doctest
import importlib
from functools import partial
from typing import Any

import pytest
import torch
from implementations import Implementation, bits_for_threads
from inputs import lengths_of, normals, seq_idx_of
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from adder.ops import short_convolution
from adder.ops.short_convolution.reference import short_convolution_reference

interface = importlib.import_module("adder.ops.short_convolution.interface")

# around rows taken together (4), tiles (32), blocks of steps (64 and 256), vectors, and blocks of channels (256)
SIZES = [
    (1, 1, 4),
    (2, 3, 4),
    (31, 15, 2),
    (32, 16, 1),
    (33, 17, 3),
    (65, 67, 4),
    (257, 5, 4),
    (6, 261, 7),
]


def draw(
    b: int, length: int, d: int, k: int, dtype: torch.dtype = torch.float32, mixed: bool = True
) -> dict[str, Any]:
    """Weights are in the type of arithmetic, or in x's own if not `mixed`."""
    x, weight, bias, state = normals(length + d + k, (b, length, d), (d, k), (d,), (b, k - 1, d))
    parameters = torch.promote_types(dtype, torch.float32) if mixed else dtype
    return {
        "x": x.to(dtype),
        "weight": weight.to(dtype).to(parameters),
        "bias": bias.to(dtype).to(parameters),
        "state": state.to(dtype),
    }


def test_reference_is_conv1d() -> None:
    inputs = draw(2, 9, 5, 4, torch.float64)
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    expected = F.conv1d(x.mT, weight.unsqueeze(1), bias, padding=3, groups=5)[..., :9].mT
    got, _ = short_convolution_reference(x, weight, bias)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "channels", "taps"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(length: int, channels: int, taps: int, dtype: torch.dtype) -> None:
    inputs = draw(2, length, channels, taps, dtype)
    assert_as_good_as_reference(
        partial(short_convolution, activation="silu"),
        partial(short_convolution_reference, activation="silu"),
        inputs,
    )


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("absent", [[], ["bias"], ["state"], ["bias", "state"]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("served", "poisoned")
def test_every_way_to_call(
    activation: str | None,
    packed: bool,
    absent: list[str],
    dtype: torch.dtype,
) -> None:
    inputs = {**draw(2, 71, 19, 4, dtype, mixed=False), **dict.fromkeys(absent)}
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, lengths_of(71))
    assert_as_good_as_reference(
        partial(short_convolution, activation=activation),
        partial(short_convolution_reference, activation=activation),
        inputs,
    )


@pytest.mark.parametrize(("length", "taps"), [(3, 9), (1, 40), (70, 90), (300, 41)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("served")
def test_many_taps(length: int, taps: int, packed: bool) -> None:
    inputs = draw(2, length, 3, taps, torch.float64)
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, [1, length - 1] if length > 1 else [1])
    assert_as_good_as_reference(short_convolution, short_convolution_reference, inputs)


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    wide = draw(4, 26, 40, 4, torch.float64)["x"]
    for x in (
        wide[::2, :, 3:20],
        wide.transpose(1, 2),
        wide[..., ::3],
        wide[:, ::2],
        wide[:, :, :1].expand(-1, -1, 9),
    ):
        inputs = draw(x.shape[0], x.shape[1], x.shape[2], 4, torch.float64)
        inputs["weight"] = inputs["weight"].t().contiguous().t()
        assert_as_good_as_reference(
            short_convolution, short_convolution_reference, {**inputs, "x": x}
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 100, 1e30])
@pytest.mark.usefixtures("served")
def test_activations_far_from_zero(dtype: torch.dtype, size: float) -> None:
    inputs = draw(2, 40, 17, 4, dtype)
    inputs["x"] = inputs["x"] * size
    assert_as_good_as_reference(
        partial(short_convolution, activation="silu"),
        partial(short_convolution_reference, activation="silu"),
        inputs,
    )


@pytest.mark.parametrize("cuts", [[1], [36], [5, 32, 33], [1, 2, 3, 20]])
def test_split_is_whole(implementation: Implementation, cuts: list[int]) -> None:
    function = implementation.of(short_convolution, short_convolution_reference)

    def by_parts(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        done = []
        for part in x.tensor_split(cuts, 1):
            y, state = function(part, weight, bias, state=state, activation="silu")
            done.append(y)
        return torch.cat(done, dim=1), state

    whole = partial(short_convolution_reference, activation="silu")
    assert_as_good_as_reference(by_parts, whole, draw(2, 37, 5, 5, torch.float64))


@pytest.mark.parametrize("length", [7, 33, 300])
def test_packed_is_separate(implementation: Implementation, length: int) -> None:
    function = implementation.of(short_convolution, short_convolution_reference)
    lengths = lengths_of(length)

    def separately(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        done, start = [], state
        for part in x.split(lengths, 1):
            y, last = short_convolution_reference(part, weight, bias, state=start)
            start = None
            done.append(y)
        return torch.cat(done, dim=1), last

    packed = partial(function, seq_idx=seq_idx_of(2, lengths))
    assert_as_good_as_reference(packed, separately, draw(2, length, 6, 4, torch.float64))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_packed_sequences_do_not_leak(implementation: Implementation, bad: float) -> None:
    function = implementation.of(short_convolution, short_convolution_reference)
    inputs = draw(1, 50, 4, 4, torch.float64)
    inputs["x"][:, :20] = bad
    packed = partial(function, activation="silu", seq_idx=seq_idx_of(1, [20, 30]))
    results = evaluate(packed, inputs)
    assert results["output 0"][:, 20:].isfinite().all()
    assert results["gradient of x"][:, 20:].isfinite().all()
    assert results["output 1"].isfinite().all()


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.usefixtures("served")
def test_gradcheck(activation: str | None) -> None:
    inputs = [each.requires_grad_() for each in draw(2, 5, 3, 3, torch.float64).values()]

    def call(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, **options: Any) -> Any:
        return short_convolution(x, weight, bias, state=state, activation=activation, **options)

    assert gradcheck(call, inputs)
    assert gradcheck(partial(call, seq_idx=seq_idx_of(2, [2, 3])), inputs)


def test_threads_do_not_change_bits() -> None:
    inputs = draw(3, 600, 83, 4)
    bits_for_threads(lambda: evaluate(partial(short_convolution, activation="silu"), inputs))


def test_state_is_the_last_inputs() -> None:
    inputs = draw(2, 2, 3, 4)
    _, state = short_convolution(**inputs)
    assert torch.equal(state, torch.cat([inputs["state"][:, 2:], inputs["x"]], dim=1))
    _, state = short_convolution(**inputs, seq_idx=seq_idx_of(2, [1, 1]))
    assert torch.equal(state, F.pad(inputs["x"][:, 1:], (0, 0, 2, 0)))


def test_opcheck() -> None:
    x, weight, bias, state = (each.requires_grad_() for each in draw(2, 7, 3, 4).values())
    seq_idx = seq_idx_of(2, [3, 4])
    forward = torch.ops.adder.short_convolution.default
    torch.library.opcheck(forward, (x, weight, bias, "silu", state, seq_idx))
    one_x, one_tap = x.detach()[:, :1].requires_grad_(), weight.detach()[:, :1].requires_grad_()
    torch.library.opcheck(forward, (one_x, one_tap, None, None, None, None))
    x, weight, bias, state = (each.detach() for each in (x, weight, bias, state))
    given = (x, weight, bias, "silu", state, seq_idx, x.clone(), state.clone())
    torch.library.opcheck(torch.ops.adder.short_convolution_backward.default, given)


@pytest.mark.compiles
def test_compiles_whole() -> None:
    function = partial(short_convolution, activation="silu")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = {**draw(2, 9, 3, 4), "seq_idx": seq_idx_of(2, [4, 5])}
    got, expected = evaluate(compiled, inputs), evaluate(function, inputs)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


ones = torch.ones
X, W = ones(2, 3, 4), ones(4, 3)
REFUSED = [
    ((ones(3, 4), W), {}, ValueError, r"x has shape \(3, 4\), expected 3 axes \(b, l, d\)"),
    ((ones(2, 0, 4), W), {}, ValueError, "axis l is empty"),
    ((X.int(), W), {}, TypeError, "x is torch.int32"),
    ((X.to(torch.complex64), W), {}, TypeError, "x is torch.complex64"),
    ((X, ones(5, 3)), {}, ValueError, r"weight has shape \(5, 3\), expected \(d, k\) = \(4, 3\)"),
    ((X, ones(4, 0)), {}, ValueError, "axis k is empty"),
    ((X, W.double()), {}, TypeError, "weight is torch.float64, expected torch.float32"),
    ((X, W.to("meta")), {}, ValueError, "weight is on meta, expected cpu"),
    ((X, W, ones(3)), {}, ValueError, r"bias has shape \(3,\), expected \(d\) = \(4,\)"),
    (
        (X, W),
        {"state": ones(2, 3, 4)},
        ValueError,
        r"state has shape \(2, 3, 4\), expected .* \(2, 2, 4\)",
    ),
    ((X, W), {"activation": "relu"}, ValueError, "activation is 'relu'"),
    ((X, W), {"seq_idx": ones(2, 3)}, TypeError, "seq_idx is torch.float32"),
    ((X, W), {"seq_idx": ones(2, 4).int()}, ValueError, "seq_idx has shape"),
    (
        (X, W),
        {"seq_idx": torch.tensor([[0, 0, 1], [1, 0, 0]], dtype=torch.int32)},
        ValueError,
        "seq_idx goes backwards in row 1, from 1 at step 0 to 0",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "error", "message"), REFUSED)
def test_refuses(
    args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"short_convolution: .*{message}"):
        short_convolution(*args, **options)


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
