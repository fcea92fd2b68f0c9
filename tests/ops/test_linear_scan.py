"""linear_scan: every implementation against the reference."""

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

from adder.ops import linear_scan
from adder.ops.linear_scan.reference import linear_scan_reference

interface = importlib.import_module("adder.ops.linear_scan.interface")

# around the portable chunk (32), vectors (4, 8, 16 lanes) and blocks of channels (512)
SIZES = [(1, 1), (2, 3), (31, 15), (32, 16), (33, 17), (97, 67), (130, 5), (5, 521)]


def draw(b: int, length: int, *channels: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    working = torch.promote_types(dtype, torch.float32)
    size = sum(channels) + length
    a, angle, x, imaginary = normals(size, *[(b, length, *channels)] * 4)
    (state,) = normals(size + 1, (b, *channels))
    a = a.abs().clamp(max=1.2)
    if dtype.is_complex:
        a, x = torch.polar(a, 3 * angle), torch.complex(x, imaginary)
        state = torch.complex(state, state.flip(0))
    return {"a": a.to(dtype), "x": x.to(dtype), "state": state.to(working)}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
)
@pytest.mark.parametrize(("length", "channels"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(length: int, channels: int, dtype: torch.dtype) -> None:
    inputs = draw(2, length, channels, dtype=dtype)
    assert_as_good_as_reference(linear_scan, linear_scan_reference, inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.bfloat16])
@pytest.mark.usefixtures("served", "poisoned")
def test_every_way_to_call(
    reverse: bool, packed: bool, with_state: bool, dtype: torch.dtype
) -> None:
    inputs = draw(2, 71, 3, 7, dtype=dtype)
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, lengths_of(71))
    if not with_state:
        inputs["state"] = None
    options = {"reverse": reverse}
    assert_as_good_as_reference(
        partial(linear_scan, **options), partial(linear_scan_reference, **options), inputs
    )


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    wide = draw(4, 26, 40, dtype=torch.float64)
    for change in (
        lambda x: x[::2, :, 3:20],
        lambda x: x.transpose(1, 2),
        lambda x: x[..., ::3],
        lambda x: x[:, :, :1].expand(-1, -1, 9),
    ):
        inputs = {"a": change(wide["a"]), "x": change(wide["x"]).flip(0)}
        assert_as_good_as_reference(linear_scan, linear_scan_reference, inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cuts", [[1], [36], [5, 32, 33], [1, 2, 3, 20]])
def test_split_is_whole(implementation: Implementation, cuts: list[int], reverse: bool) -> None:
    function = implementation.of(linear_scan, linear_scan_reference)

    def by_parts(a: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(zip(a.tensor_split(cuts, 1), x.tensor_split(cuts, 1), strict=True))
        done = []
        for part_a, part_x in reversed(parts) if reverse else parts:
            h, state = function(part_a, part_x, state, reverse=reverse)
            done.append(h)
        return torch.cat(done[::-1] if reverse else done, dim=1), state

    inputs = draw(2, 37, 5, dtype=torch.float64)
    assert_as_good_as_reference(by_parts, partial(linear_scan_reference, reverse=reverse), inputs)


@pytest.mark.parametrize("length", [7, 33, 100])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_is_separate(implementation: Implementation, length: int, reverse: bool) -> None:
    function = implementation.of(linear_scan, linear_scan_reference)
    lengths = lengths_of(length)

    def separately(a: Tensor, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(zip(a.split(lengths, 1), x.split(lengths, 1), strict=True))
        done, start = [], state
        for part_a, part_x in reversed(parts) if reverse else parts:
            h, last = linear_scan_reference(part_a, part_x, start, reverse=reverse)
            start = None
            done.append(h)
        return torch.cat(done[::-1] if reverse else done, dim=1), last

    packed = partial(function, reverse=reverse, seq_idx=seq_idx_of(2, lengths))
    assert_as_good_as_reference(packed, separately, draw(2, length, 6, dtype=torch.float64))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_packed_sequences_do_not_leak(implementation: Implementation, bad: float) -> None:
    function = implementation.of(linear_scan, linear_scan_reference)
    inputs = draw(1, 50, 4, dtype=torch.float64)
    inputs["x"][:, :20] = bad
    seq_idx = seq_idx_of(1, [20, 30])
    results = evaluate(partial(function, seq_idx=seq_idx), inputs)
    for name in ("output 0", "gradient of a", "gradient of x"):
        assert results[name][:, 20:].isfinite().all(), name
    assert results["output 1"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.usefixtures("served")
def test_gradcheck(dtype: torch.dtype, reverse: bool) -> None:
    inputs = [each.requires_grad_() for each in draw(2, 5, 3, dtype=dtype).values()]
    seq_idx = seq_idx_of(2, [2, 3])
    assert gradcheck(partial(linear_scan, reverse=reverse, seq_idx=seq_idx), inputs)
    assert gradcheck(partial(linear_scan, reverse=reverse), inputs)
    assert gradcheck(partial(linear_scan, reverse=reverse), inputs[:2])


def test_threads_do_not_change_bits() -> None:
    bits_for_threads(lambda: evaluate(linear_scan, draw(3, 300, 83)))


def test_storage_state_keeps_its_type() -> None:
    inputs = draw(2, 5, 3, dtype=torch.bfloat16)
    state = inputs["state"].bfloat16().requires_grad_()
    h, last = linear_scan(inputs["a"], inputs["x"], state)
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    last.sum().backward()
    assert state.grad is not None
    assert state.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_opcheck(dtype: torch.dtype) -> None:
    a, x, state = (each.requires_grad_() for each in draw(2, 7, 3, dtype=dtype).values())
    seq_idx = seq_idx_of(2, [3, 4])
    torch.library.opcheck(torch.ops.adder.linear_scan.default, (a, x, state, True, seq_idx))
    one_a, one_x = (each.detach()[:, :1].requires_grad_() for each in (a, x))
    torch.library.opcheck(torch.ops.adder.linear_scan.default, (one_a, one_x, None, False, None))
    with torch.no_grad():
        h, last = linear_scan(a, x)
    given = (a.detach(), h, None, False, None, h.detach(), last)
    torch.library.opcheck(torch.ops.adder.linear_scan_backward.default, given)


@pytest.mark.compiles
def test_compiles_whole() -> None:
    compiled = torch.compile(linear_scan, fullgraph=True, backend="aot_eager")
    inputs = {**draw(2, 9, 3), "seq_idx": seq_idx_of(2, [4, 5])}
    got, expected = evaluate(compiled, inputs), evaluate(linear_scan, inputs)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


ones = torch.ones
REFUSED = [
    (
        (ones(2, 3, 4), ones(2, 3, 5)),
        {},
        ValueError,
        r"a has shape \(2, 3, 4\), expected .* \(2, 3, 5\)",
    ),
    ((ones(3), ones(3)), {}, ValueError, "at least 2 axes"),
    ((ones(2, 0, 4), ones(2, 0, 4)), {}, ValueError, "axis 1 is empty"),
    ((ones(2, 3).int(), ones(2, 3).int()), {}, TypeError, "x is torch.int32"),
    (
        (ones(2, 3).double(), ones(2, 3)),
        {},
        TypeError,
        "a is torch.float64, expected torch.float32",
    ),
    ((ones(2, 3, device="meta"), ones(2, 3)), {}, ValueError, "a is on meta, expected cpu"),
    (
        (ones(2, 3, 4), ones(2, 3, 4), ones(2, 3)),
        {},
        ValueError,
        r"state has shape \(2, 3\), expected",
    ),
    ((ones(2, 3), ones(2, 3), ones(2).half()), {}, TypeError, "state is torch.float16"),
    ((ones(1, 3), ones(1, 3)), {"seq_idx": ones(1, 2).int()}, ValueError, "seq_idx has shape"),
    ((ones(1, 3), ones(1, 3)), {"seq_idx": ones(1, 3)}, TypeError, "seq_idx is torch.float32"),
    (
        (ones(1, 3), ones(1, 3)),
        {"seq_idx": torch.tensor([[0, 2, 1]], dtype=torch.int32)},
        ValueError,
        "seq_idx goes backwards in row 0, from 2 at step 1 to 1",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "error", "message"), REFUSED)
def test_refuses(
    args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"linear_scan: .*{message}"):
        linear_scan(*args, **options)


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
