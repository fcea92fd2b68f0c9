"""The calls that state_space_dual's Triton kernels are tried on, in Triton's interpreter and on a GPU alike."""

import importlib
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from implementations import poison
from inputs import lengths_of, seq_idx_of
from test_state_space_dual import draw
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from triton_process import let_tensors_be_loop_bounds

from adder.ops import state_space_dual
from adder.ops.state_space_dual import gpu
from adder.ops.state_space_dual.portable import Inputs
from adder.ops.state_space_dual.reference import state_space_dual_reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIGNALS = ("x", "dt", "B", "C", "z")
Case = tuple[str, dict[str, Any]]


def cases() -> Iterator[Case]:
    """Name and inputs. A chunk has 256 steps, a tile 64 or 128 of them; p and n are padded to 16 at least."""
    for length, heads, groups, channels, states in [
        (1, 1, 1, 1, 1),
        (257, 2, 1, 5, 17),
        (64, 4, 2, 16, 16),
    ]:
        sizes = f"l={length} h={heads} g={groups} p={channels} n={states}"
        yield f"float32 {sizes}", draw(1, length, heads, groups, channels, states)
    yield "bfloat16", draw(1, 140, 2, 1, 16, 20, torch.bfloat16)
    yield "float16", draw(1, 65, 2, 1, 16, 16, torch.float16)
    heads = gpu.SHARE + 1  # of which the interpreter sums over two
    yield "more heads than a program sums over", draw(1, 20, heads, 1, 3, 4)
    yield "D of each channel", draw(1, 33, 4, 2, 5, 4, per_channel=True)
    packed = draw(2, 280, 2, 1, 3, 5)
    packed["seq_idx"] = torch.cat([seq_idx_of(1, lengths_of(280)), seq_idx_of(1, [256, 24])])
    yield "packed", packed
    for absent in (["D"], ["z"], ["D", "z", "state", "dt_bias"]):
        yield f"without {absent}", {**draw(1, 131, 2, 1, 3, 4), **dict.fromkeys(absent)}
    yield "bfloat16, no gate", {**draw(1, 259, 2, 1, 16, 16, torch.bfloat16), "z": None}
    for limit in ((0.5, 1.0), (0.0, 0.25)):
        yield f"limits {limit}", {**draw(1, 35, 2, 1, 3, 4), "dt_limit": limit}
        plain = {**draw(1, 35, 2, 1, 3, 4), "dt_softplus": False, "dt_limit": limit}
        yield f"limits {limit}, no softplus", plain
    yield "strided", strided(draw(2, 20, 2, 2, 3, 4))
    slow = draw(1, 300, 1, 1, 2, 2)
    slow |= {"dt": torch.full((1, 300, 1), 1e-4), "dt_bias": None, "dt_softplus": False}
    yield "a long memory", slow
    if not INTERPRETED:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            yield f"{dtype} p=64 n=128", draw(2, 300, 8, 2, 64, 128, dtype)
        yield "p=128 n=256", draw(1, 300, 2, 1, 128, 256, torch.bfloat16)
        yield "float32 p=128 n=256", draw(1, 140, 2, 1, 128, 256)
        yield "p=80 n=96", draw(1, 300, 2, 1, 80, 96, torch.bfloat16)
        packed = draw(2, 1031, 9, 1, 32, 64, torch.bfloat16)
        yield "long and packed", {**packed, "seq_idx": seq_idx_of(2, [3, 500, 28, 400, 100])}


def strided(inputs: dict[str, Any]) -> dict[str, Any]:
    """The signals as slices of one tensor, as Mamba-2's projection makes them."""
    b, l, h, p = inputs["x"].shape
    flat = {name: inputs[name].flatten(2) for name in SIGNALS}
    sizes = [each.shape[2] for each in flat.values()]
    for name, each in zip(flat, torch.cat(list(flat.values()), -1).split(sizes, -1), strict=True):
        inputs[name] = each.unflatten(2, inputs[name].shape[2:]) if name != "dt" else each
    assert inputs["x"].shape == (b, l, h, p)
    return inputs


def on_device(**inputs: Any) -> tuple[Tensor, Tensor]:
    """state_space_dual on the GPU where there is one: from and to the CPU, where the reference is."""
    if not INTERPRETED:
        inputs = {
            name: each.cuda() if isinstance(each, Tensor) else each for name, each in inputs.items()
        }
    y, last = state_space_dual(**inputs)
    return y.cpu(), last.cpu()


def serve_in_interpreter() -> None:
    """Let the Triton kernels serve the CPU."""
    interface = importlib.import_module("adder.ops.state_space_dual.interface")

    @interface._state_space_dual.register_kernel("cpu")
    def _(*arguments):  # type: ignore[no-untyped-def]
        return gpu.forward(Inputs(*arguments[:14]), arguments[14])

    @interface._state_space_dual_backward.register_kernel("cpu")
    def _(*arguments):  # type: ignore[no-untyped-def]
        return gpu.backward(Inputs(*arguments[:14]), *arguments[14:])


def mend_bfloat16() -> None:
    """Triton 3.6's interpreter multiplies the bits of bfloat16 numbers, and cuts them off where a GPU rounds.

    Nor does it know bf16x6: float32 is multiplied as it is.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode).reshape(values.shape)
        number = torch.from_numpy(np.array(values, dtype=np.float32))
        return number.bfloat16().view(torch.uint16).numpy()

    def dot(builder: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
        a, b = (
            builder.cast_impl(each, tl.float32) if each.dtype.scalar == tl.bfloat16 else each
            for each in (a, b)
        )
        found = np.matmul(a.data, b.data, dtype=total.data.dtype) + total.data
        return interpreter.TensorHandle(found, total.dtype.scalar)

    gpu.PRECISION = {
        dtype: precision if precision == "bf16" else "ieee"
        for dtype, precision in gpu.PRECISION.items()
    }
    interpreter._convert_float = rounded
    interpreter.InterpreterBuilder.create_dot = dot


def sequences_do_not_leak() -> None:
    """NaN or infinity in one packed sequence stays there, within a chunk and across chunks, in both directions."""
    each_alone = [] if INTERPRETED else [(name,) for name in SIGNALS]
    for names in (SIGNALS, *each_alone):
        for border, before in ((40, True), (40, False), (256, True)):
            length = border + 30
            inputs = draw(1, length, 1, 1, 3, 4)
            damaged, sound = slice(border), slice(border, None)
            if not before:
                damaged, sound = sound, damaged
            for name in names:
                inputs[name][:, damaged] = torch.nan if before else torch.inf
            results = evaluate(
                partial(on_device, seq_idx=seq_idx_of(1, [border, length - border])), inputs
            )
            for each in ("output 0", *(f"gradient of {signal}" for signal in SIGNALS)):
                assert results[each][:, sound].isfinite().all(), (names, before, each)
            last = results["output 1" if before else "gradient of state"]
            assert last.isfinite().all(), (names, before)


def steps_do_not_see_the_future() -> None:
    for name in SIGNALS:
        inputs = draw(1, 140, 1, 1, 3, 4)
        with torch.no_grad():
            expected, _ = on_device(**inputs)
            inputs[name][:, 25] = torch.nan
            y, _ = on_device(**inputs)
        assert torch.equal(y[:, :25], expected[:, :25]), name
        assert y[:, 25].isnan().all(), name


def decays_at_the_ends_of_the_range() -> None:
    """A step of nothing keeps the state as it is, a huge step forgets it; and among slow ones, it harms none."""
    for scale in (1e-30, 1e4, 1e30):
        inputs = {**draw(1, 40, 2, 1, 3, 4), "dt_softplus": False, "dt_bias": None}
        inputs["dt"] = inputs["dt"].abs() * scale
        inputs["x"] = inputs["x"] / max(scale, 1)
        assert_as_good_as_reference(on_device, state_space_dual_reference, inputs)
    huge = math.sqrt(torch.finfo(torch.float32).max)
    inputs = draw(1, 40, 2, 1, 3, 4)
    inputs |= {"dt_softplus": False, "dt_bias": None, "D": None, "A": torch.full((2,), -huge)}
    inputs["dt"] = torch.full((1, 40, 2), 1e-3 / huge)
    inputs["dt"][:, [3, 20, 21]] = 4 * huge
    inputs["x"] = inputs["x"] / inputs["dt"].unsqueeze(-1)
    for got, expected in zip(
        on_device(**inputs), state_space_dual_reference(**inputs), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def the_same_bits() -> None:
    """Five runs of one call."""
    inputs = draw(2, 600, 24, 1, 64, 128, torch.bfloat16)
    first, *others = (evaluate(on_device, inputs) for _ in range(5))
    for each in others:
        assert all(torch.equal(first[name], each[name]) for name in first)


def two_hundred_thousand_steps() -> None:
    """A signal of more than 2^31 numbers: its last steps, and their gradients, are as those of the last 1088 alone."""
    b, l, h, p, n = 1, 200_000, 168, 64, 128
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    x, dy = (torch.randn(b, l, h, p, **options) for _ in range(2))
    assert x.numel() > 2**31
    B, C = (torch.randn(b, l, 1, n, **options) for _ in range(2))
    dt, A = x.new_ones(b, l, h), -torch.ones(h, device="cuda")
    found = []
    for length in (l, 1088):  # which starts where a chunk does
        signals = [each[:, -length:].detach().requires_grad_() for each in (x, dt, B, C)]
        y, last = state_space_dual(signals[0], signals[1], A, signals[2], signals[3])
        gradients = torch.autograd.grad(y, signals, dy[:, -length:])
        found.append([last, *(each[:, -128:] for each in (y, *gradients))])
        del y, last, gradients
    for name, got, expected in zip(("last", "y", "x", "dt", "B", "C"), *found, strict=True):
        assert torch.equal(got, expected), name


def sums_of_parts_of_two_to_the_31_numbers() -> None:
    """The first of them, of two parts; int8, and for the CPU from NumPy, of which only what is met takes memory."""
    size, device = 1 << 31, "cpu" if INTERPRETED else "cuda"
    parts = torch.from_numpy(np.zeros(size + gpu.BLOCK, dtype=np.int8)).to(device)
    parts[: gpu.BLOCK], parts[size:] = 1, 2
    out = torch.full((gpu.BLOCK,), torch.nan, device=device)
    gpu.gather_kernel[(1,)](parts, out, size // 128, size, 1, 2, 128, BLOCK=gpu.BLOCK)
    assert torch.equal(out, torch.full_like(out, 3.0))


def main(share: int = 0, shares: int = 1) -> None:
    """Try every case, or one share of them, as many processes compile faster; print each before it starts."""
    if INTERPRETED:
        let_tensors_be_loop_bounds()
        mend_bfloat16()
        serve_in_interpreter()
        poison(pytest.MonkeyPatch())
        gpu.SHARE = 2
    for name, inputs in islice(cases(), share, None, shares):
        print(name, flush=True)
        assert_as_good_as_reference(on_device, state_space_dual_reference, inputs)
    others = [sequences_do_not_leak, steps_do_not_see_the_future, decays_at_the_ends_of_the_range]
    others += [sums_of_parts_of_two_to_the_31_numbers]
    if not INTERPRETED:
        others += [the_same_bits, two_hundred_thousand_steps]
    for check in islice(others, share, None, shares):
        print(check.__name__, flush=True)
        check()
    print("done")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
