"""long_convolution: every implementation against the direct sum."""

import doctest
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from implementations import Implementation, bits_for_threads, isas, serving
from inputs import normals
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck

from adder.cli.info import LEFT_OUT
from adder.ops import long_convolution, native
from adder.ops.long_convolution import cpu
from adder.ops.long_convolution.portable import fast_length
from adder.ops.long_convolution.reference import long_convolution_reference

interface = importlib.import_module("adder.ops.long_convolution.interface")

# b, l, h, c, k: around vectors (4, 8, 16), lengths of each radix, few taps and many, taps beyond the length
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 2, 3, 1, 2),
    (3, 13, 5, 2, 13),
    (1, 1, 17, 1, 100),
    (2, 100, 16, 1, 3),
    (3, 97, 33, 1, 97),
    (1, 30, 4, 3, 211),
    (2, 250, 19, 2, 61),
]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def draw(
    b: int, length: int, h: int, c: int, k: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    u, K, state = normals(length + h + k, (b, length, h), (c, h, k), (b, k - 1, h))
    working = torch.promote_types(dtype, torch.float32)
    return {"u": u.to(dtype), "K": K.to(working), "state": state.to(dtype)}


def without_state(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, "state": None}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("b", "length", "h", "c", "k"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(
    b: int, length: int, h: int, c: int, k: int, with_state: bool, dtype: torch.dtype
) -> None:
    inputs = draw(b, length, h, c, k, dtype)
    assert_as_good_as_reference(
        long_convolution,
        long_convolution_reference,
        inputs if with_state else without_state(inputs),
    )


@pytest.mark.parametrize(("length", "k"), [(784, 784), (700, 300), (90, 784), (1531, 64)])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("served", "poisoned")
def test_long(length: int, k: int, with_state: bool, dtype: torch.dtype) -> None:
    inputs = draw(3, length, 2, 1, k, dtype)
    assert_as_good_as_reference(
        long_convolution,
        long_convolution_reference,
        inputs if with_state else without_state(inputs),
    )


@pytest.mark.parametrize("length", [16, 100, 509, 1000, 1024, 2048])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.usefixtures("served")
def test_no_wrap_around(length: int, decay: float) -> None:
    """White noise and a kernel that hardly decays: what a transform too short would fold back is seen."""
    (u,) = normals(length, (1, length, 1))
    u = u.double()
    K = torch.exp(-decay * torch.arange(length, dtype=torch.float64))
    expected = np.convolve(u.flatten().numpy(), K.numpy())[:length]
    got = long_convolution(u, K.view(1, -1)).flatten().numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def smooth(least: int, most: int) -> list[int]:
    """Return the numbers from `least` to `most` that have no prime factors but 2, 3, 5 and 7."""

    def rest(n: int) -> int:
        for factor in (2, 3, 5, 7):
            while n % factor == 0:
                n //= factor
        return n

    return [n for n in range(least, most + 1) if rest(n) == 1]


@pytest.mark.parametrize("isa", isas())
def test_every_length_of_a_transform(isa: str) -> None:
    """A signal as long as its kernel fills a transform of so many points: each factor at each level."""
    with serving(f"cpu {isa}"):
        assert_equal_to_numpy(smooth(32, 1100))


def assert_equal_to_numpy(lengths: list[int]) -> None:
    for length in lengths:
        u, K, dy = (each.double().requires_grad_() for each in normals(length, *[(length,)] * 3))
        y = long_convolution(u.view(1, -1, 1), K.view(1, -1)).flatten()
        got = [y, *torch.autograd.grad(y, (u, K), dy)]
        of_u, of_K, of_y = (each.detach().numpy() for each in (u, K, dy))
        expected = [
            np.convolve(of_u, of_K)[:length],
            np.convolve(of_y[::-1], of_K)[:length][::-1],
            np.convolve(of_y[::-1], of_u)[:length][::-1],
        ]
        for ours, theirs in zip(got, expected, strict=True):
            error = np.abs(ours.detach().numpy() - theirs).max()
            assert error <= 1e-13 * np.abs(theirs).max(), length


@pytest.mark.usefixtures("served")
def test_a_slow_kernel_in_float32() -> None:
    (u,) = normals(5, (2, 1000, 3))
    K = torch.exp(-1e-3 * torch.arange(1000.0)).expand(3, -1)
    expected = long_convolution_reference(u.double(), K.double())
    error = (long_convolution(u, K) - expected).abs().max()
    assert error <= 1e-6 * expected.abs().max()


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    (wide,) = normals(0, (4, 60, 60))
    wide = wide.double()
    for u in (
        wide[::2, :, 3:20],
        wide.transpose(1, 2),
        wide[..., ::3],
        wide[:, ::2],
        wide[:, :, :1].expand(-1, -1, 9),
    ):
        inputs = draw(u.shape[0], u.shape[1], u.shape[2], 2, 41, torch.float64)
        inputs = {name: each.mT.contiguous().mT for name, each in inputs.items()}
        assert_as_good_as_reference(
            long_convolution, long_convolution_reference, {**inputs, "u": u}
        )


@pytest.mark.usefixtures("served")
def test_one_kernel_each_has_two_axes_or_three() -> None:
    inputs = without_state(draw(2, 40, 3, 1, 40))
    three = long_convolution(**inputs)
    assert torch.equal(long_convolution(inputs["u"], inputs["K"][0]), three)
    assert three.shape == (2, 40, 3)


def test_outputs_of_a_channel_lie_c_outermost(implementation: Implementation) -> None:
    function = implementation.of(long_convolution, long_convolution_reference)
    inputs = without_state(draw(2, 40, 3, 2, 40, torch.float64))
    together = function(**inputs).view(2, 40, 2, 3)
    for c in range(2):
        alone = function(inputs["u"], inputs["K"][c])
        torch.testing.assert_close(together[:, :, c], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [36], [5, 32, 33], [1, 2, 3, 80]])
@pytest.mark.parametrize("k", [1, 5, 110])
def test_split_is_whole(implementation: Implementation, cuts: list[int], k: int) -> None:
    function = implementation.of(long_convolution, long_convolution_reference)

    def by_parts(u: Tensor, K: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        done = []
        for part in u.tensor_split(cuts, 1):
            y, state = function(part, K, state=state)
            done.append(y)
        return torch.cat(done, dim=1), state

    inputs = draw(2, 101, 3, 2, k, torch.float64)
    assert_as_good_as_reference(by_parts, long_convolution_reference, inputs)


def test_zeros_are_no_state(implementation: Implementation) -> None:
    function = implementation.of(long_convolution, long_convolution_reference)
    inputs = draw(2, 50, 3, 1, 70, torch.float64)
    y, _ = function(inputs["u"], inputs["K"], state=torch.zeros_like(inputs["state"]))
    torch.testing.assert_close(function(inputs["u"], inputs["K"]), y, rtol=0, atol=1e-12)


def test_state_is_the_last_inputs() -> None:
    inputs = draw(2, 2, 3, 1, 4)
    _, state = long_convolution(**inputs)
    assert torch.equal(state, torch.cat([inputs["state"][:, 2:], inputs["u"]], dim=1))
    u, K = inputs["u"], inputs["K"]
    _, state = long_convolution(u, K[..., :2], state=inputs["state"][:, :1])
    assert torch.equal(state, u[:, 1:])
    _, state = long_convolution(u, K[..., :1], state=inputs["state"][:, :0])
    assert state.shape == (2, 0, 3)


@pytest.mark.parametrize(("length", "k"), [(5, 3), (3, 5), (40, 40)])
@pytest.mark.usefixtures("served")
def test_gradcheck(length: int, k: int) -> None:
    inputs = [each.requires_grad_() for each in draw(2, length, 2, 2, k, torch.float64).values()]

    def call(u: Tensor, K: Tensor, state: Tensor) -> Any:
        return long_convolution(u, K, state=state)

    assert gradcheck(call, inputs, fast_mode=length > 5)
    assert gradcheck(long_convolution, inputs[:2], fast_mode=length > 5)


@pytest.mark.parametrize("k", [4, 150])
def test_threads_do_not_change_bits(k: int) -> None:
    inputs = draw(5, 300, 83, 2, k)
    bits_for_threads(lambda: evaluate(long_convolution, inputs))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.usefixtures("served")
def test_rows_and_channels_do_not_leak(bad: float) -> None:
    inputs = draw(3, 70, 5, 1, 70)
    inputs["u"][1, 69, 3] = bad
    results = evaluate(long_convolution, inputs)
    wrong = results["output 0"].isfinite().logical_not().any(1).nonzero().tolist()
    assert wrong == [[1, 3]]


def test_opcheck() -> None:
    u, K, state = (each.requires_grad_() for each in draw(2, 7, 3, 2, 4).values())
    forward = torch.ops.adder.long_convolution.default
    torch.library.opcheck(forward, (u, K, state))
    torch.library.opcheck(forward, (u, K, None))
    torch.library.opcheck(forward, (u, K.detach()[..., :1], state.detach()[:, :0]))
    u, K, state = (each.detach() for each in (u, K, state))
    backward = torch.ops.adder.long_convolution_backward.default
    torch.library.opcheck(backward, (u, K, state, torch.cat([u, u], -1)))


@pytest.mark.compiles
@pytest.mark.parametrize("with_state", [False, True])
def test_compiles_whole(with_state: bool) -> None:
    compiled = torch.compile(long_convolution, fullgraph=True, backend="aot_eager")
    inputs = draw(2, 9, 3, 2, 4)
    inputs = inputs if with_state else without_state(inputs)
    got, expected = evaluate(compiled, inputs), evaluate(long_convolution, inputs)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.skipif(native.module() is None, reason="adder was not compiled here")
def test_more_taps_than_a_transform_spans_are_left_to_pytorch() -> None:
    kernels = native.module()
    most = kernels.long_convolution_most_taps
    assert str(most) in LEFT_OUT["long_convolution"]
    u, K, state = (
        torch.empty(shape, device="meta") for shape in [(1, 2, 1), (1, 1, most + 1), (1, most, 1)]
    )
    assert cpu.serves(kernels, u, K, None)
    assert cpu.serves(kernels, u, K[..., 1:], state)
    assert not cpu.serves(kernels, u, K, state)


def test_fast_length() -> None:
    def is_fast(n: int) -> bool:
        for factor in (2, 3, 5):
            while n % factor == 0:
                n //= factor
        return n == 1

    for least in range(1, 700):
        expected = next(n for n in range(least, 2 * least + 1) if is_fast(n))
        assert fast_length(least) == expected


ones = torch.ones
U, K = ones(2, 3, 4), ones(4, 3)
REFUSED = [
    ((ones(3, 4), K), {}, ValueError, r"u has shape \(3, 4\), expected 3 axes \(b, l, h\)"),
    ((ones(2, 0, 4), K), {}, ValueError, "axis l is empty"),
    ((U.int(), K), {}, TypeError, "u is torch.int32"),
    ((U.to(torch.complex64), K), {}, TypeError, "u is torch.complex64"),
    ((U, ones(5, 3)), {}, ValueError, r"K has shape \(5, 3\), expected \(h, k\) = \(4, 3\)"),
    ((U, ones(2, 5, 3)), {}, ValueError, r"K has shape \(2, 5, 3\), .* = \(2, 4, 3\)"),
    ((U, ones(3)), {}, ValueError, r"K has shape \(3,\), expected 3 axes \(c, h, k\)"),
    ((U, ones(4, 0)), {}, ValueError, "axis k is empty"),
    ((U, ones(0, 4, 2)), {}, ValueError, "axis c is empty"),
    ((U, K.double()), {}, TypeError, "K is torch.float64, expected torch.float32"),
    ((U, K.to("meta")), {}, ValueError, "K is on meta, expected cpu"),
    ((U, K), {"state": ones(2, 3, 4)}, ValueError, r"state .* expected .* = \(2, 2, 4\)"),
    ((U, K), {"state": ones(2, 2, 4).double()}, TypeError, "state is torch.float64"),
    ((U, K), {"state": (U, U)}, TypeError, "state is a tuple, expected a tensor"),
    ((U, K), {"seq_idx": ones(2, 3).int()}, ValueError, "seq_idx was given, expected None"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "error", "message"), REFUSED)
def test_refuses(
    args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"long_convolution: .*{message}"):
        long_convolution(*args, **options)


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
