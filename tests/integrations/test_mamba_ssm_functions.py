"""mamba_ssm's and causal_conv1d's functions against the references of our operators, in float64, in their layouts."""

from typing import Any

import pytest
import torch
from einops import rearrange, repeat
from tolerance import assert_as_good_as_reference
from torch import Tensor

from adder.integrations.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_chunk_scan_combined,
    selective_scan_fn,
    selective_state_update,
)
from adder.ops.selective_scan.reference import selective_scan_reference
from adder.ops.short_convolution.reference import short_convolution_reference
from adder.ops.state_space_dual.reference import state_space_dual_reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
b, l, d, n, g, k, h, p = 2, 7, 6, 3, 2, 4, 4, 5


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape) + 7 * len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def real(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def scan_reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **rest: Any) -> Any:
    def steps_first(x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x
        if A.is_complex():
            x = torch.view_as_complex(
                rearrange(x.to(real(x.dtype)), "... (l two) -> ... l two", two=2).contiguous()
            )
        return rearrange(x, "b n l -> b l n" if x.ndim == 3 else "b g n l -> b l g n")

    z = rest.pop("z", None)
    z = None if z is None else z.mT
    y, last = selective_scan_reference(
        u.mT, delta.mT, A, steps_first(B), steps_first(C), z=z, **rest
    )
    return y.mT, last


def scan_inputs(dtype: torch.dtype, B: str, C: str, *, full: bool) -> dict[str, Any]:
    shapes = {"time": (b, n, l), "groups": (b, g, n, l), "constant": (d, n)}
    inputs = {
        "u": normal(b, d, l, dtype=dtype),
        "delta": normal(b, d, l, dtype=dtype, seed=1),
        "A": -normal(d, n, dtype=real(dtype)).exp(),
        **{
            name: normal(
                *shapes[kind], dtype=real(dtype) if kind == "constant" else dtype, seed=seed
            )
            for name, kind, seed in (("B", B, 2), ("C", C, 3))
        },
    }
    if full:
        inputs |= {
            "D": normal(d, dtype=real(dtype)),
            "z": normal(b, l, d, dtype=dtype, seed=4).mT,
            "delta_bias": normal(d, dtype=real(dtype), seed=5),
        }
    return inputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "C", "full"),
    [
        ("time", "time", True),
        ("groups", "groups", True),
        ("constant", "constant", False),
        ("time", "constant", True),
        ("constant", "groups", True),
        ("groups", "time", False),
    ],
)
def test_selective_scan_fn(B: str, C: str, full: bool, dtype: torch.dtype) -> None:
    def ours(**given: Any) -> Any:
        return selective_scan_fn(**given, delta_softplus=True, return_last_state=True)

    def reference(**given: Any) -> Any:
        return scan_reference(**given, delta_softplus=True)

    assert_as_good_as_reference(ours, reference, scan_inputs(dtype, B, C, full=full))


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_selective_scan_fn_with_complex_A(dtype: torch.dtype, constant: bool) -> None:
    inputs = scan_inputs(dtype, "time", "time", full=True)
    A = torch.complex(inputs["A"], normal(d, n, dtype=dtype))
    if constant:
        B, C = (torch.complex(normal(d, n, dtype=dtype, seed=i), A.imag) for i in (6, 7))
    else:
        B, C = (normal(b, n, 2 * l, dtype=dtype, seed=i) for i in (6, 7))
    assert_as_good_as_reference(
        lambda **given: selective_scan_fn(**given, delta_softplus=True, return_last_state=True),
        lambda **given: scan_reference(**given, delta_softplus=True),
        inputs | {"A": A, "B": B, "C": C},
    )


def test_a_scan_goes_on_from_a_state_and_returns_none_unasked() -> None:
    inputs = scan_inputs(torch.float64, "time", "time", full=True)
    whole = selective_scan_fn(**inputs)
    halves = [
        {name: x[..., part] if x.shape[-1] == l else x for name, x in inputs.items()}
        for part in (slice(0, 3), slice(3, l))
    ]
    first, state = selective_scan_fn(**halves[0], return_last_state=True)
    second = selective_scan_fn(**halves[1], state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=-1), whole)


def test_mixed_types_are_computed_in_the_widest() -> None:
    inputs = scan_inputs(torch.float32, "time", "time", full=True)
    low = inputs["u"].bfloat16()
    y = selective_scan_fn(**{**inputs, "u": low})
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, selective_scan_fn(**{**inputs, "u": low.float()}).bfloat16())


def update_inputs(dtype: torch.dtype, heads: bool) -> dict[str, Any]:
    shape, groups = ((h, p), (g,)) if heads else ((d,), ())
    return {
        "state": normal(b, *shape, n, dtype=real(dtype)),
        "x": normal(b, *shape, dtype=dtype, seed=1),
        "dt": normal(b, *shape, dtype=dtype, seed=2),
        "A": -normal(*shape, n, dtype=real(dtype)).exp(),
        "B": normal(b, *groups, n, dtype=dtype, seed=3),
        "C": normal(b, *groups, n, dtype=dtype, seed=4),
        "D": normal(*shape, dtype=real(dtype)),
        "z": normal(b, *shape, dtype=dtype, seed=5),
        "dt_bias": normal(*shape, dtype=real(dtype), seed=6),
    }


def updated(state: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """What is returned and what is written, of a state that the test keeps."""
    state = state.clone()
    return selective_state_update(state, **given, dt_softplus=True), state


def update_reference(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Any,
    z: Any,
    dt_bias: Any,
) -> tuple[Tensor, Tensor]:
    """One step of the scan, with the channels of all heads in a row."""

    def flat(each: Tensor) -> Tensor:
        return each.flatten(1).unsqueeze(1)

    y, last = selective_scan_reference(
        flat(x),
        flat(dt),
        A.reshape(-1, n),
        B.reshape(b, 1, -1, n),
        C.reshape(b, 1, -1, n),
        D.flatten(),
        z=flat(z),
        delta_bias=dt_bias.flatten(),
        delta_softplus=True,
        state=state.reshape(b, -1, n),
    )
    return y.view(x.shape), last.view(state.shape)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_selective_state_update(dtype: torch.dtype, heads: bool) -> None:
    assert_as_good_as_reference(updated, update_reference, update_inputs(dtype, heads))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_update_with_one_step_for_a_head(dtype: torch.dtype) -> None:
    """As Mamba-2 decodes: dt, A and dt_bias are expanded over channels, and cost nothing there."""
    inputs = update_inputs(dtype, heads=True)
    inputs |= {
        "dt": inputs["dt"][..., 0],
        "A": inputs["A"][:, 0, 0],
        "dt_bias": inputs["dt_bias"][:, 0],
    }

    def expand(given: dict[str, Any]) -> dict[str, Any]:
        return given | {
            "dt": given["dt"].unsqueeze(-1).expand(b, h, p),
            "A": given["A"][:, None, None].expand(h, p, n),
            "dt_bias": given["dt_bias"].unsqueeze(-1).expand(h, p),
        }

    assert_as_good_as_reference(
        lambda **given: updated(**expand(given)),
        lambda **given: update_reference(**expand(given)),
        inputs,
    )


def test_a_state_update_without_options_and_of_some_rows() -> None:
    inputs = update_inputs(torch.float64, heads=True)
    given = {name: inputs[name] for name in ("x", "dt", "A", "B", "C")}
    whole = normal(5, h, p, n)
    rows = torch.tensor([3, 1], dtype=torch.int32)
    alone, after = whole[[3, 1]].clone(), whole.clone()
    expected = selective_state_update(alone, **given)
    assert torch.equal(selective_state_update(after, **given, state_batch_indices=rows), expected)
    assert torch.equal(after[[3, 1]], alone)
    assert torch.equal(after[[0, 2, 4]], whole[[0, 2, 4]])
    strided = torch.empty_like(alone).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    strided.copy_(whole[[3, 1]])
    assert torch.equal(selective_state_update(strided, **given), expected)
    assert torch.equal(strided, alone)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_causal_conv1d_fn(dtype: torch.dtype, activation: str | None) -> None:
    def ours(**given: Any) -> Any:
        return causal_conv1d_fn(**given, return_final_states=True, activation=activation)

    def reference(x: Tensor, weight: Tensor, bias: Tensor, initial_states: Tensor) -> Any:
        act = activation and "silu"
        y, last = short_convolution_reference(
            x.mT, weight, bias, activation=act, state=initial_states.mT
        )
        return y.mT, last.mT

    inputs = {
        "x": normal(b, l, d, dtype=dtype).mT,
        "weight": normal(d, k, dtype=dtype),
        "bias": normal(d, dtype=dtype),
        "initial_states": normal(b, d, k - 1, dtype=dtype),
    }
    assert_as_good_as_reference(ours, reference, inputs)


def test_causal_conv1d_fn_packed_and_written_out() -> None:
    x, weight = normal(1, d, l), normal(d, k)
    seq_idx = torch.tensor([[0] * 3 + [1] * 4], dtype=torch.int32)
    apart = [causal_conv1d_fn(part, weight) for part in (x[..., :3], x[..., 3:])]
    torch.testing.assert_close(causal_conv1d_fn(x, weight, seq_idx=seq_idx), torch.cat(apart, -1))
    out = torch.empty(1, d, k - 1, dtype=x.dtype)
    _, last = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)
    assert last is out
    assert torch.equal(out, x[..., -3:])


@pytest.mark.parametrize("width", [k - 1, k, k + 2])
@pytest.mark.parametrize("steps", [None, 1, 3, 9])
def test_causal_conv1d_update(width: int, steps: int | None) -> None:
    before, weight, bias = normal(b, d, width), normal(d, k), normal(d)
    x = normal(b, d) if steps is None else normal(b, d, steps)
    state = before.clone()
    y = causal_conv1d_update(x, state, weight, bias, activation="silu")
    known = torch.cat([before, x if steps else x.unsqueeze(-1)], dim=-1)
    whole, _ = short_convolution_reference(known.mT, weight, bias, activation="silu")
    assert y.shape == x.shape
    torch.testing.assert_close(y, whole[:, width:].mT.reshape(x.shape), rtol=0, atol=1e-14)
    assert torch.equal(state, known[..., -width:])


def test_causal_conv1d_update_of_some_rows() -> None:
    states, x, weight = normal(5, d, k), normal(b, d), normal(d, k)
    alone, after = states[[3, 1]].clone(), states.clone()
    expected = causal_conv1d_update(x, alone, weight)
    rows = torch.tensor([3, 1], dtype=torch.int32)
    assert torch.equal(causal_conv1d_update(x, after, weight, conv_state_indices=rows), expected)
    assert torch.equal(after[[3, 1]], alone)
    assert torch.equal(after[[0, 2, 4]], states[[0, 2, 4]])


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mamba_chunk_scan_combined(dtype: torch.dtype, per_channel: bool) -> None:
    options = {"dt_softplus": True, "dt_limit": (0.1, 1.5)}
    seq_idx = torch.tensor([[0] * 3 + [1] * 4, [0] * 6 + [5]], dtype=torch.int32)

    def ours(**given: Any) -> Any:
        return mamba_chunk_scan_combined(
            **given, chunk_size=4, seq_idx=seq_idx, return_final_states=True, **options
        )

    def reference(initial_states: Tensor, **given: Any) -> Any:
        return state_space_dual_reference(**given, state=initial_states, seq_idx=seq_idx, **options)

    inputs = {
        "x": normal(b, l, h, p, dtype=dtype),
        "dt": normal(b, l, h, dtype=dtype),
        "A": -normal(h, dtype=real(dtype)).exp(),
        "B": normal(b, l, g, n, dtype=dtype, seed=1),
        "C": normal(b, l, g, n, dtype=dtype, seed=2),
        "D": normal(*((h, p) if per_channel else (h,)), dtype=real(dtype)),
        "z": repeat(normal(b, l, h, dtype=dtype), "b l h -> b l h p", p=p),
        "dt_bias": normal(h, dtype=real(dtype), seed=3),
        "initial_states": normal(b, h, p, n, dtype=real(dtype)),
    }
    assert_as_good_as_reference(ours, reference, inputs)
