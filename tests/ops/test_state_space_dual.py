"""state_space_dual: every implementation against the reference."""

import doctest
import importlib
import math
from functools import partial
from typing import Any

import pytest
import torch
from implementations import Implementation, serving
from inputs import lengths_of, normals, seq_idx_of
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck

from adder.ops import selective_scan, state_space_dual
from adder.ops.state_space_dual.reference import state_space_dual_reference

interface = importlib.import_module("adder.ops.state_space_dual.interface")

CHUNK = 16
by_chunks = partial(state_space_dual, chunk_size=CHUNK)

# (length, heads, groups, channels, states), around chunks
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 3, 1, 2),
    (15, 4, 2, 3, 5),
    (16, 2, 1, 8, 16),
    (17, 6, 3, 5, 1),
    (37, 2, 2, 4, 9),
    (64, 3, 1, 2, 3),
]


def draw(
    b: int,
    length: int,
    h: int,
    g: int,
    p: int,
    n: int,
    dtype: torch.dtype = torch.float32,
    *,
    per_channel: bool = False,
) -> dict[str, Any]:
    """Signals in `dtype`, parameters and state in the type of arithmetic."""
    shapes = {
        "x": (b, length, h, p),
        "dt": (b, length, h),
        "A": (h,),
        "B": (b, length, g, n),
        "C": (b, length, g, n),
        "D": (h, p) if per_channel else (h,),
        "z": (b, length, h, p),
        "dt_bias": (h,),
        "state": (b, h, p, n),
    }
    drawn = dict(zip(shapes, normals(length + h + n, *shapes.values()), strict=True))
    drawn["A"] = -drawn["A"].exp()
    working = torch.promote_types(dtype, torch.float32)
    for name, each in drawn.items():
        signal = name in ("x", "dt", "B", "C", "z")
        drawn[name] = each.to(dtype) if signal else each.to(dtype).to(working)
    return {**drawn, "dt_softplus": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "heads", "groups", "channels", "states"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(
    length: int, heads: int, groups: int, channels: int, states: int, dtype: torch.dtype
) -> None:
    inputs = draw(2, length, heads, groups, channels, states, dtype)
    assert_as_good_as_reference(by_chunks, state_space_dual_reference, inputs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "absent", [[], ["D"], ["z"], ["dt_bias"], ["state"], ["D", "z", "state", "dt_bias"]]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("served", "poisoned")
def test_every_way_to_call(
    packed: bool, softplus: bool, absent: list[str], dtype: torch.dtype
) -> None:
    drawn = draw(2, 41, 4, 2, 3, 5, dtype, per_channel=packed)
    inputs = {**drawn, **dict.fromkeys(absent), "dt_softplus": softplus}
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, lengths_of(41))
    if not softplus:
        inputs["dt"], inputs["dt_bias"] = inputs["dt"].abs(), None
    assert_as_good_as_reference(by_chunks, state_space_dual_reference, inputs)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.5, 1.0), (0, 0.25), (0.7, math.inf), (1, 1)])
@pytest.mark.usefixtures("served")
def test_limits_of_the_step_size(limit: tuple[float, float], softplus: bool) -> None:
    """Without softplus half of the steps are below zero, and so zero: they keep the state as it is."""
    inputs = {**draw(2, 35, 2, 1, 3, 4, torch.float64), "dt_limit": limit, "dt_softplus": softplus}
    assert_as_good_as_reference(by_chunks, state_space_dual_reference, inputs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 36, 37, 1000])
@pytest.mark.usefixtures("served", "poisoned")
def test_chunks_of_any_size(size: int, packed: bool) -> None:
    inputs = draw(2, 37, 4, 2, 3, 5, torch.float64)
    if packed:
        # in one row a sequence starts where a chunk does, in the other it does not
        cuts = [seq_idx_of(1, each) for each in ([7, 7, 1, 22], [5, 20, 12])]
        inputs["seq_idx"] = torch.cat(cuts)
    by_some = partial(state_space_dual, chunk_size=size)
    assert_as_good_as_reference(by_some, state_space_dual_reference, inputs)


@pytest.mark.parametrize("length", [interface.CHUNK - 1, interface.CHUNK, interface.CHUNK + 1])
@pytest.mark.usefixtures("served")
def test_chunks_of_the_default_size(length: int) -> None:
    inputs = draw(1, length, 2, 1, 4, 3)
    assert_as_good_as_reference(state_space_dual, state_space_dual_reference, inputs)


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    inputs = draw(2, 40, 4, 2, 3, 5, torch.float64)
    wide = torch.cat([inputs["z"], inputs["x"]], dim=-1)
    inputs["z"], inputs["x"] = wide[..., :3], wide[..., 3:]
    inputs["B"] = inputs["B"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["C"] = torch.cat([inputs["C"], inputs["C"]], dim=-1)[..., :5]
    inputs["state"] = inputs["state"].mT.contiguous().mT
    assert_as_good_as_reference(by_chunks, state_space_dual_reference, inputs)
    inputs["x"] = inputs["x"][:, :, :1].expand(-1, -1, 4, -1)
    inputs["dt"] = inputs["dt"][:, :1].expand(-1, 40, -1)
    assert_as_good_as_reference(by_chunks, state_space_dual_reference, inputs)


@pytest.mark.parametrize("cuts", [[1], [36], [5, 32, 33], [1, 2, 3, 20]])
def test_split_is_whole(implementation: Implementation, cuts: list[int]) -> None:
    function = implementation.of(by_chunks, state_space_dual_reference)

    def by_parts(
        A: Tensor, D: Tensor, dt_bias: Tensor, state: Tensor, dt_softplus: bool, **signals: Tensor
    ) -> tuple[Tensor, Tensor]:
        done = []
        parts = {name: each.tensor_split(cuts, 1) for name, each in signals.items()}
        for i in range(len(cuts) + 1):
            part = {name: each[i] for name, each in parts.items()}
            y, state = function(
                A=A, D=D, dt_bias=dt_bias, state=state, dt_softplus=dt_softplus, **part
            )
            done.append(y)
        return torch.cat(done, dim=1), state

    inputs = draw(2, 37, 4, 2, 3, 5, torch.float64)
    assert_as_good_as_reference(by_parts, state_space_dual_reference, inputs)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_is_a_selective_scan_with_one_decay_for_a_head(
    implementation: Implementation, groups: int, packed: bool
) -> None:
    function = implementation.of(by_chunks, state_space_dual_reference)
    b, length, h, p, n = 2, 37, 4, 3, 5
    inputs = draw(b, length, h, groups, p, n, torch.float64)
    seq_idx = seq_idx_of(b, lengths_of(length)) if packed else None
    y, state = function(**inputs, seq_idx=seq_idx)
    expected, last = selective_scan(
        inputs["x"].flatten(2),
        inputs["dt"].repeat_interleave(p, 2),
        inputs["A"].repeat_interleave(p)[:, None].repeat(1, n),
        inputs["B"],
        inputs["C"],
        inputs["D"].repeat_interleave(p),
        z=inputs["z"].flatten(2),
        delta_bias=inputs["dt_bias"].repeat_interleave(p),
        delta_softplus=True,
        state=inputs["state"].flatten(1, 2),
        seq_idx=seq_idx,
    )
    torch.testing.assert_close(y.flatten(2), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state.flatten(1, 2), last, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "z"])
@pytest.mark.parametrize("before", [True, False])
def test_packed_sequences_do_not_leak(
    implementation: Implementation, name: str, bad: float, before: bool
) -> None:
    """Not even NaN crosses the border, in either direction, be it inside a chunk or between two."""
    function = implementation.of(by_chunks, state_space_dual_reference)
    for border in (CHUNK, CHUNK + 5):
        inputs = draw(1, 50, 2, 1, 3, 4, torch.float64)
        damaged, sound = slice(border), slice(border, None)
        if not before:
            damaged, sound = sound, damaged
        inputs[name][:, damaged] = bad
        results = evaluate(partial(function, seq_idx=seq_idx_of(1, [border, 50 - border])), inputs)
        for each in (
            "output 0",
            *(f"gradient of {signal}" for signal in ("x", "dt", "B", "C", "z")),
        ):
            assert results[each][:, sound].isfinite().all(), each
        assert not results["output 0"][:, damaged].isfinite().any()
        last = results["output 1" if before else "gradient of state"]
        assert last.isfinite().all()


@pytest.mark.usefixtures("served")
def test_a_sequence_that_comes_back_is_a_new_one() -> None:
    """Where nobody looks at the values of seq_idx: inside torch.compile, and on a GPU."""
    x, dt, A, B, C = (draw(1, 40, 2, 1, 3, 4)[name] for name in ("x", "dt", "A", "B", "C"))
    outputs = []
    for number in (3, 9):
        seq_idx = torch.tensor([3] * 12 + [6] * 2 + [number] * 26, dtype=torch.int32)[None]
        inputs = (x, dt, A, B, C, None, None, None, True, 0.0, math.inf, CHUNK, None, seq_idx)
        outputs.append(torch.ops.adder.state_space_dual(*inputs, False)[0])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "z"])
def test_steps_do_not_see_the_future(implementation: Implementation, name: str) -> None:
    """Not even NaN, which a weight of zero does not silence."""
    function = implementation.of(by_chunks, state_space_dual_reference)
    inputs = draw(1, 40, 2, 1, 3, 4)
    expected, _ = function(**inputs)
    inputs[name][:, 25] = torch.nan
    y, _ = function(**inputs)
    assert torch.equal(y[:, :25], expected[:, :25])
    assert y[:, 25].isnan().all()


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
@pytest.mark.usefixtures("served")
def test_decays_at_the_ends_of_the_range(scale: float) -> None:
    """A step of nothing keeps the state as it is; a huge step forgets it: no NaN on the way."""
    inputs = {**draw(1, 40, 2, 1, 3, 4), "dt_softplus": False, "dt_bias": None}
    inputs["dt"] = inputs["dt"].abs() * scale
    inputs["x"] = inputs["x"] / max(scale, 1)
    assert_as_good_as_reference(by_chunks, state_space_dual_reference, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("served")
def test_a_decay_of_zero_among_slow_ones(dtype: torch.dtype) -> None:
    """Its log is -inf: a difference of running sums would be NaN from there on, and a clamped one imprecise."""
    inputs = draw(1, 40, 2, 1, 3, 4, dtype)
    inputs |= {"dt_softplus": False, "dt_bias": None, "D": None}
    inputs["A"] = torch.full((2,), -(torch.finfo(dtype).max ** 0.5), dtype=dtype)
    inputs["dt"] = torch.full((1, 40, 2), 1e-3 / torch.finfo(dtype).max ** 0.5, dtype=dtype)
    inputs["dt"][:, [3, 20, 21]] = 4 * torch.finfo(dtype).max ** 0.5
    inputs["x"] = inputs["x"] / inputs["dt"].unsqueeze(-1)
    y, state = by_chunks(**inputs)
    expected, last = state_space_dual_reference(**inputs)
    accuracy = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(y, expected, rtol=accuracy, atol=accuracy)
    torch.testing.assert_close(state, last, rtol=accuracy, atol=accuracy)
    assert (inputs["dt"] * inputs["A"])[0, 3].isinf().all()


@pytest.mark.usefixtures("served")
def test_a_long_memory_is_kept() -> None:
    """Over 4,000 steps of a slow decay float32 stays as near to float64 as the reference does."""
    inputs = draw(1, 4_000, 1, 1, 2, 2)
    inputs = {k: inputs[k] for k in ("x", "A", "B", "C", "state")}
    inputs["dt"] = torch.full((1, 4_000, 1), 1e-4)
    assert_as_good_as_reference(state_space_dual, state_space_dual_reference, inputs)


def test_two_hundred_thousand_steps() -> None:
    """float32 against float64: two roundings of each chunk add up at random over a memory of 10,000 steps."""
    inputs = draw(1, 200_000, 1, 1, 1, 2)
    del inputs["z"], inputs["D"]
    inputs |= {"A": torch.full((1,), -1e-4), "dt_bias": torch.zeros(1)}
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    (y, state), (expected, last) = state_space_dual(**inputs), state_space_dual(**wide)
    bound = 2 * math.sqrt(10_000 / interface.CHUNK) * torch.finfo(torch.float32).eps
    assert (y - expected).abs().max() < bound * expected.abs().max()
    assert (state - last).abs().max() < bound * last.abs().max()


@pytest.mark.usefixtures("served")
def test_sums_over_a_long_sequence() -> None:
    """The gradients of A, D and dt_bias are sums over 4,000 steps of one sign: a running sum loses digits."""
    drawn = draw(1, 4_000, 1, 1, 1, 1)
    inputs = {name: drawn[name].abs() for name in ("x", "dt", "B", "C", "D")}
    inputs |= {"A": torch.full((1,), -1e-6), "dt_bias": torch.zeros(1)}
    ours, theirs = (
        partial(_summed, each) for each in (state_space_dual, state_space_dual_reference)
    )
    assert_as_good_as_reference(ours, theirs, inputs)


def _summed(function: Any, **inputs: Tensor) -> Tensor:
    return function(**inputs)[0].sum(1)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.usefixtures("served")
def test_gradcheck(per_channel: bool) -> None:
    inputs = draw(2, 5, 4, 2, 2, 2, torch.float64, per_channel=per_channel)
    names = [name for name, each in inputs.items() if isinstance(each, Tensor)]

    def call(*tensors: Tensor, **more: Any) -> Any:
        given = dict(zip(names, tensors, strict=True))
        return state_space_dual(**given, dt_softplus=True, chunk_size=3, **more)

    leaves = [inputs[name].requires_grad_() for name in names]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradcheck(partial(call, seq_idx=seq_idx_of(2, [1, 3, 1])), leaves, fast_mode=True)


def test_gradcheck_of_every_entry() -> None:
    inputs = draw(1, 4, 2, 1, 2, 2, torch.float64)
    names = [name for name, each in inputs.items() if isinstance(each, Tensor)]
    leaves = [inputs[name].requires_grad_() for name in names]

    def call(*tensors: Tensor) -> Any:
        given = dict(zip(names, tensors, strict=True))
        return state_space_dual(**given, dt_softplus=True, chunk_size=3)

    assert gradcheck(call, leaves)


@pytest.mark.usefixtures("served")
def test_autocast_has_no_say() -> None:
    inputs = draw(2, 20, 2, 1, 3, 4)
    expected = evaluate(by_chunks, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = evaluate(by_chunks, inputs)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


def test_nothing_of_the_size_of_all_states_is_kept() -> None:
    inputs = {k: v for k, v in draw(1, 256, 2, 1, 8, 16).items() if isinstance(v, Tensor)}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y, last = by_chunks(**{k: v.requires_grad_() for k, v in inputs.items()})
    given = sum(each.nbytes for each in (*inputs.values(), y, last))
    assert sum(kept.values()) <= given + y.nbytes  # as many as x at n = chunk_size


def test_opcheck() -> None:
    inputs = draw(2, 7, 4, 2, 3, 2)
    x, dt, A, B, C, D, z, bias, state = (
        each.requires_grad_() for each in inputs.values() if isinstance(each, Tensor)
    )
    seq_idx, options = seq_idx_of(2, [3, 4]), (True, 0.1, 2.0, 4)
    forward = torch.ops.adder.state_space_dual.default
    given = (x, dt, A, B, C, D, z, bias, *options, state, seq_idx)
    torch.library.opcheck(forward, (*given, True))
    bare = (x, dt, A, B, C, None, None, None, False, 0.0, math.inf, 128, None, None)
    torch.library.opcheck(forward, (*bare, True))
    given = tuple(each.detach() if isinstance(each, Tensor) else each for each in given)
    saved = forward(*given, True)[2]
    grads = x.detach().clone(), state.detach().clone()
    backward = torch.ops.adder.state_space_dual_backward.default
    torch.library.opcheck(backward, (*given, saved, *grads))


@pytest.mark.compiles
@pytest.mark.parametrize("limit", [(0.0, math.inf), (0.1, 2.0)])
@pytest.mark.parametrize("implementation", ["portable", "as installed"])
def test_compiles_whole(implementation: str, limit: tuple[float, float]) -> None:
    inputs = {**draw(2, 9, 4, 2, 3, 2), "seq_idx": seq_idx_of(2, [4, 5]), "dt_limit": limit}
    compiled = torch.compile(by_chunks, fullgraph=True, backend="aot_eager")

    def check() -> None:
        got, expected = evaluate(compiled, inputs), evaluate(by_chunks, inputs)
        for name in expected:
            assert torch.equal(got[name], expected[name]), name

    if implementation == "as installed":
        check()
    else:
        with serving(implementation):
            check()


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
