"""selective_scan: every implementation against the reference."""

import doctest
import importlib
import math
from functools import partial
from typing import Any

import pytest
import torch
from implementations import Implementation, bits_for_threads, serving
from inputs import lengths_of, normals, seq_idx_of
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck

from adder.ops import selective_scan
from adder.ops.selective_scan.reference import selective_scan_reference

interface = importlib.import_module("adder.ops.selective_scan.interface")

# around chunks (32), vectors of channels (4, 8, 16), blocks of four vectors, and blocks of states (16 and its halves)
SIZES = [
    (1, 1, 1),
    (2, 3, 2),
    (31, 15, 16),
    (32, 16, 16),
    (33, 17, 31),
    (67, 65, 5),
    (97, 5, 16),
    (64, 130, 3),
]


def draw(
    b: int,
    length: int,
    d: int,
    n: int,
    dtype: torch.dtype = torch.float32,
    *,
    groups: int | None = None,
    constant: bool = False,
    number: torch.dtype | None = None,
) -> dict[str, Any]:
    """Signals in `dtype`, parameters and state in the type of arithmetic, or in `number` where A is complex."""
    projection = (b, length, n) if groups is None else (b, length, groups, n)
    if constant:
        projection = (d, n)
    shapes = {
        "u": (b, length, d),
        "delta": (b, length, d),
        "A": (d, n),
        "B": projection,
        "C": projection,
        "D": (d,),
        "z": (b, length, d),
        "delta_bias": (d,),
        "state": (b, d, n),
    }
    drawn = dict(zip(shapes, normals(length + d + n, *shapes.values()), strict=True))
    drawn["A"] = -drawn["A"].exp()
    working = torch.promote_types(dtype, torch.float32)
    for name, each in drawn.items():
        signal = name in ("u", "delta", "z") or (name in ("B", "C") and not constant)
        drawn[name] = each.to(dtype) if signal else each.to(dtype).to(working)
    if number is not None:
        for seed, name in enumerate(("A", "B", "C", "state")):
            (imaginary,) = normals(seed, drawn[name].shape)
            drawn[name] = torch.complex(drawn[name].to(working), imaginary.to(working)).to(number)
    return {**drawn, "delta_softplus": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "channels", "states"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(length: int, channels: int, states: int, dtype: torch.dtype) -> None:
    inputs = draw(2, length, channels, states, dtype)
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(
    "absent", [[], ["D"], ["z"], ["delta_bias"], ["state"], ["D", "z", "state"]]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("served", "poisoned")
def test_every_way_to_call(
    packed: bool, softplus: bool, absent: list[str], dtype: torch.dtype
) -> None:
    inputs = {**draw(2, 71, 19, 4, dtype), **dict.fromkeys(absent), "delta_softplus": softplus}
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, lengths_of(71))
    if not softplus:
        inputs["delta"] = inputs["delta"].abs()
        inputs["delta_bias"] = None
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.parametrize(
    "options", [{"groups": 1}, {"groups": 3}, {"groups": 12}, {"constant": True}]
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.usefixtures("served", "poisoned")
def test_groups_and_constant_projections(options: dict[str, Any], packed: bool) -> None:
    inputs = draw(2, 35, 12, 5, torch.float64, **options)
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, lengths_of(35))
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.parametrize("B", [{}, {"groups": 3}, {"groups": 4}, {"constant": True}])
@pytest.mark.parametrize("C", [{}, {"groups": 3}, {"groups": 12}, {"constant": True}])
@pytest.mark.usefixtures("served", "poisoned")
def test_projections_of_two_kinds(B: dict[str, Any], C: dict[str, Any]) -> None:
    inputs = draw(2, 35, 12, 5, torch.float64, **B)
    inputs["C"] = draw(2, 35, 12, 5, torch.float64, **C)["C"]
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"constant": True}])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("served", "poisoned")
def test_complex_A(options: dict[str, Any], packed: bool, dtype: torch.dtype) -> None:
    inputs = draw(2, 35, 6, 5, dtype, number=dtype.to_complex(), **options)
    if packed:
        inputs["seq_idx"] = seq_idx_of(2, lengths_of(35))
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


def test_complex_A_is_both_of_each_pair() -> None:
    """y = 2 Re(C h) over half of the modes is y = C h over all of them, which is real."""
    half = draw(2, 20, 3, 4, torch.float64, number=torch.complex128)
    y, _ = selective_scan(**half)
    both = {name: torch.cat([half[name], half[name].conj()], dim=-1) for name in "ABC"}
    rest = {k: v for k, v in half.items() if k not in both}
    rest["state"] = torch.cat([rest["state"], rest["state"].conj()], dim=-1)
    twice, _ = selective_scan_reference(**{**rest, **both, "D": None, "z": None})
    single, _ = selective_scan(**{**half, "D": None, "z": None})
    torch.testing.assert_close(single, twice / 2, rtol=1e-12, atol=1e-12)
    assert not y.is_complex()


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    inputs = draw(2, 40, 12, 5, torch.float64)
    wide = torch.cat([inputs["u"], inputs["z"], inputs["delta"]], dim=-1)
    inputs["u"], inputs["z"], inputs["delta"] = wide[..., :12], wide[..., 12:24], wide[..., 24:]
    inputs["B"] = inputs["B"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["C"] = torch.cat([inputs["C"], inputs["C"]], dim=-1)[..., :5]
    inputs["A"] = inputs["A"].t().contiguous().t()
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)
    inputs["u"] = inputs["u"][:, :, :1].expand(-1, -1, 12)
    inputs["delta"] = inputs["delta"][:, :1].expand(-1, 40, -1)
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.parametrize("cuts", [[1], [36], [5, 32, 33], [1, 2, 3, 20]])
def test_split_is_whole(implementation: Implementation, cuts: list[int]) -> None:
    function = implementation.of(selective_scan, selective_scan_reference)

    def by_parts(
        A: Tensor,
        D: Tensor,
        delta_bias: Tensor,
        state: Tensor,
        delta_softplus: bool,
        **signals: Tensor,
    ) -> tuple[Tensor, Tensor]:
        done = []
        parts = {name: each.tensor_split(cuts, 1) for name, each in signals.items()}
        for i in range(len(cuts) + 1):
            part = {name: each[i] for name, each in parts.items()}
            y, state = function(
                A=A, D=D, delta_bias=delta_bias, state=state, delta_softplus=delta_softplus, **part
            )
            done.append(y)
        return torch.cat(done, dim=1), state

    assert_as_good_as_reference(
        by_parts, selective_scan_reference, draw(2, 37, 5, 3, torch.float64)
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_packed_sequences_do_not_leak(implementation: Implementation, bad: float) -> None:
    function = implementation.of(selective_scan, selective_scan_reference)
    inputs = draw(1, 80, 4, 3, torch.float64)
    inputs["u"][:, :40] = bad
    results = evaluate(partial(function, seq_idx=seq_idx_of(1, [40, 40])), inputs)
    for name in ("output 0", "gradient of u", "gradient of delta", "gradient of B"):
        assert results[name][:, 40:].isfinite().all(), name
    assert results["output 1"].isfinite().all()


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
@pytest.mark.usefixtures("served")
def test_decays_at_the_ends_of_the_range(scale: float) -> None:
    """A step of nothing keeps the state as it is; a huge step forgets it: no NaN on the way."""
    inputs = {**draw(1, 40, 5, 3), "delta_softplus": False, "delta_bias": None}
    inputs["delta"] = inputs["delta"].abs() * scale
    inputs["u"] = inputs["u"] / max(scale, 1)
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.usefixtures("served")
def test_a_long_memory_is_kept() -> None:
    """Over 4,000 steps of a slow decay the float32 kernel stays as near to float64 as the reference does."""
    inputs = draw(1, 4_000, 2, 2)
    inputs = {k: inputs[k] for k in ("u", "A", "B", "C", "state")}
    inputs["delta"] = torch.full((1, 4_000, 2), 1e-4)
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)


@pytest.mark.usefixtures("served")
def test_sums_over_a_long_sequence() -> None:
    """The gradients of A, D and delta_bias are sums over 8,000 steps of one sign: a running sum loses digits."""
    drawn = draw(1, 8_000, 1, 1)
    inputs = {name: drawn[name].abs() for name in ("u", "delta", "B", "C", "D")}
    inputs |= {"A": torch.full((1, 1), -1e-6), "delta_bias": torch.zeros(1)}
    positive = partial(_positive, selective_scan), partial(_positive, selective_scan_reference)
    assert_as_good_as_reference(*positive, inputs)


def _positive(function: Any, **inputs: Tensor) -> Tensor:
    return function(**inputs)[0].sum(1)


@pytest.mark.usefixtures("served")
def test_step_sizes_above_twenty() -> None:
    """PyTorch's softplus(x) is x from 20 on, which is wrong by 1e-10; the truth is not."""
    inputs = {**draw(1, 33, 3, 2, torch.float64), "delta_bias": None}
    inputs["A"] = inputs["A"] / 1000
    inputs["delta"] = torch.linspace(15, 40, 99, dtype=torch.float64).view(1, 33, 3)
    assert_as_good_as_reference(selective_scan, selective_scan_reference, inputs)
    one, none = torch.ones(1, 1, 1).double(), torch.zeros(1, 1).double()
    _, state = selective_scan(one, 21 * one, none, one, one, delta_softplus=True)
    assert state.item() == 21 + math.log1p(math.exp(-21))


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"constant": True}])
@pytest.mark.parametrize("number", [None, torch.complex128])
@pytest.mark.usefixtures("served")
def test_gradcheck(options: dict[str, Any], number: torch.dtype | None) -> None:
    inputs = draw(2, 4, 4, 2, torch.float64, number=number, **options)
    names = [name for name, each in inputs.items() if isinstance(each, Tensor)]

    def call(*tensors: Tensor, **more: Any) -> Any:
        return selective_scan(**dict(zip(names, tensors, strict=True)), delta_softplus=True, **more)

    leaves = [inputs[name].requires_grad_() for name in names]
    assert gradcheck(call, leaves, fast_mode=True)
    assert gradcheck(partial(call, seq_idx=seq_idx_of(2, [1, 3])), leaves, fast_mode=True)


def test_gradcheck_of_every_entry() -> None:
    inputs = draw(1, 3, 2, 2, torch.float64)
    names = [name for name, each in inputs.items() if isinstance(each, Tensor)]
    leaves = [inputs[name].requires_grad_() for name in names]
    assert gradcheck(
        lambda *t: selective_scan(**dict(zip(names, t, strict=True)), delta_softplus=True), leaves
    )


def test_threads_do_not_change_bits() -> None:
    inputs = draw(3, 300, 150, 16)
    bits_for_threads(lambda: evaluate(selective_scan, inputs))


def test_nothing_of_the_size_of_all_states_is_kept() -> None:
    b, length, d, n = 1, 256, 32, 16
    inputs = {k: v for k, v in draw(b, length, d, n).items() if isinstance(v, Tensor)}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y, last = selective_scan(**{k: v.requires_grad_() for k, v in inputs.items()})
    given = sum(each.nbytes for each in (*inputs.values(), y, last))
    assert sum(kept.values()) <= 1.3 * given


def test_opcheck() -> None:
    inputs = draw(2, 7, 3, 2)
    inputs["B"], inputs["C"] = inputs["B"].unsqueeze(2), inputs["C"].unsqueeze(2)
    u, delta, A, B, C, D, z, bias, state = (
        each.requires_grad_() for each in inputs.values() if isinstance(each, Tensor)
    )
    seq_idx = seq_idx_of(2, [3, 4])
    forward = torch.ops.adder.selective_scan.default
    torch.library.opcheck(forward, (u, delta, A, B, C, D, z, bias, True, state, seq_idx, True))
    torch.library.opcheck(forward, (u, delta, A, B, C, None, None, None, False, None, None, True))
    plain = [each.detach() for each in (u, delta, A, B, C, D, z, bias)]
    saved = forward(*plain, True, state.detach(), seq_idx, True)[2]
    backward = torch.ops.adder.selective_scan_backward.default
    given = (
        *plain,
        True,
        state.detach(),
        seq_idx,
        saved,
        u.detach().clone(),
        state.detach().clone(),
    )
    torch.library.opcheck(backward, given)


@pytest.mark.compiles
@pytest.mark.parametrize("number", [None, torch.complex64])
@pytest.mark.parametrize("implementation", ["portable", "as installed"])
def test_compiles_whole(implementation: str, number: torch.dtype | None) -> None:
    inputs = {**draw(2, 9, 3, 2, number=number), "seq_idx": seq_idx_of(2, [4, 5])}
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")

    def check() -> None:
        got, expected = evaluate(compiled, inputs), evaluate(selective_scan, inputs)
        for name in expected:
            assert torch.equal(got[name], expected[name]), name

    if implementation == "as installed":
        check()
    else:
        with serving(implementation):
            check()


ones = torch.ones
U, A, B = ones(2, 3, 4), -ones(4, 5), ones(2, 3, 5)
REFUSED = [
    (
        (ones(3, 4), U, A, B, B),
        {},
        ValueError,
        r"u has shape \(3, 4\), expected 3 axes \(b, l, d\)",
    ),
    ((ones(2, 0, 4), U, A, B, B), {}, ValueError, "axis l is empty"),
    ((U.int(), U, A, B, B), {}, TypeError, "u is torch.int32"),
    ((U, ones(2, 3, 5), A, B, B), {}, ValueError, r"delta has shape .* \(b, l, d\) = \(2, 3, 4\)"),
    ((U, U.double(), A, B, B), {}, TypeError, "delta is torch.float64, expected torch.float32"),
    (
        (U, U, ones(3, 5), B, B),
        {},
        ValueError,
        r"A has shape \(3, 5\), expected \(d, n\) = \(4, 5\)",
    ),
    ((U, U, ones(4), B, B), {}, ValueError, r"A has shape \(4,\), expected 2 axes"),
    ((U, U, A.double(), B, B), {}, TypeError, "A is torch.float64"),
    ((U, U, A, ones(2, 3, 6), B), {}, ValueError, r"B has shape .* \(b, l, n\) = \(2, 3, 5\)"),
    ((U, U, A, B, ones(2, 3, 3, 5)), {}, ValueError, "C has shape .* 3 groups do not divide 4"),
    ((U, U, A, B, ones(5)), {}, ValueError, r"C has shape \(5,\), expected \(b, l, n\)"),
    ((U, U, A, B.to(torch.complex64), B), {}, TypeError, "B is torch.complex64"),
    ((U, U, A, B, B, ones(3)), {}, ValueError, r"D has shape \(3,\), expected \(d\) = \(4,\)"),
    ((U, U, A, B, B.to("meta")), {}, ValueError, "C is on meta, expected cpu"),
    ((U, U, A, B, B), {"z": ones(2, 3, 1)}, ValueError, "z has shape"),
    ((U, U, A, B, B), {"delta_bias": ones(1)}, ValueError, "delta_bias has shape"),
    (
        (U, U, A, B, B),
        {"state": ones(2, 5, 4)},
        ValueError,
        r"state has .* \(b, d, n\) = \(2, 4, 5\)",
    ),
    ((U, U, A, B, B), {"seq_idx": ones(2, 3)}, TypeError, "seq_idx is torch.float32"),
    (
        (U, U, A, B, B),
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
    with pytest.raises(error, match=f"selective_scan: .*{message}"):
        selective_scan(*args, **options)


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
