"""dplr_kernel: every implementation against powers of the dense matrix."""

import doctest
import importlib
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from implementations import bits_for_threads
from inputs import normals
from tolerance import assert_as_good_as_reference, evaluate
from torch import Tensor
from torch.autograd import gradcheck

from adder.ops import diagonal_kernel, dplr_kernel
from adder.ops.dplr_kernel.portable import steps_of
from adder.ops.dplr_kernel.reference import dplr_kernel_reference

interface = importlib.import_module("adder.ops.dplr_kernel.interface")

# around the steps of a block (32, later 64), numbers in a vector (8, 16), and every rank
SIZES = [(1, 1, 1, 1, 1), (2, 3, 1, 2, 7), (3, 4, 2, 1, 31), (1, 8, 1, 1, 32), (2, 5, 3, 3, 33)]
SIZES += [(2, 4, 0, 1, 65), (1, 9, 1, 2, 997)]


def draw(h: int, m: int, r: int, c: int, *, dtype: torch.dtype = torch.complex64) -> dict[str, Any]:
    parts = normals(h + m + r + c, *[(2, h, m)] * 2, (2, r, h, m), (2, c, h, m), (1, h))
    Lambda, B, P, C = (torch.complex(*each) for each in parts[:4])
    Lambda = torch.complex(-Lambda.real.abs() / 2, Lambda.imag * 3 * m)
    given = {"Lambda": Lambda, "P": P / max(m, 1) ** 0.5, "B": B, "C": C}
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    return {
        **{name: each.to(dtype) for name, each in given.items()},
        "dt": (parts[4][0].abs() / 9).to(real),
    }


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("h", "m", "r", "c", "length"), SIZES)
@pytest.mark.usefixtures("served", "poisoned")
def test_forward_and_backward(
    h: int, m: int, r: int, c: int, length: int, dtype: torch.dtype
) -> None:
    assert_as_good_as_reference(
        partial(dplr_kernel, length=length),
        partial(dplr_kernel_reference, length=length),
        draw(h, m, r, c, dtype=dtype),
    )


def legs(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS of size 2 m by its published entries, as Lambda, P and B of one of each conjugate pair."""
    n = 2 * m
    root = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    A = -torch.tril(root.outer(root), -1) - torch.diag(
        torch.arange(1.0, n + 1, dtype=torch.float64)
    )
    p = root / 2**0.5
    skew = A + p.outer(p) + torch.eye(n, dtype=torch.float64) / 2
    frequencies, V = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    V = V[:, frequencies > 0]
    Lambda = -0.5 + 1j * frequencies[frequencies > 0]
    return Lambda[None], (V.mH @ p.to(V.dtype))[None, None], (V.mH @ root.to(V.dtype))[None]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.usefixtures("served")
def test_hippo_against_extended_precision(dtype: torch.dtype) -> None:
    """n = 64, length 4096: state-spaces/s4 errs by 1.1e-4 in float32 here. The truth has 19 digits."""
    Lambda, P, B = (each.to(dtype) for each in legs(32))
    C = torch.complex(*normals(3, (1, 1, 32), (1, 1, 32))).to(dtype)
    dt = torch.full((1,), 0.01, dtype=Lambda.real.dtype)
    K = dplr_kernel(Lambda, P, B, C, dt, 4096)[0, 0].double()
    places = [0, 1, 2, 63, 64, 1000, 4095]
    found = _exact(Lambda[0], P[0, 0], B[0], C[0, 0], dt, places)
    truth = torch.tensor(found, dtype=torch.float64)
    error = (K[places] - truth).abs().max() / K.abs().max()
    assert error < (5e-7 if dtype == torch.complex64 else 1e-12)


def _exact(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, places: list[int]
) -> list[float]:
    """K at these places, by powers of the dense real matrix in numpy's 80-bit numbers."""
    L, p, b, c = (
        each.to(torch.complex128).numpy().astype(np.clongdouble) for each in (Lambda, P, B, C)
    )
    A = np.block([[np.diag(L.real), -np.diag(L.imag)], [np.diag(L.imag), np.diag(L.real)]])
    p, b, c = (
        np.append(p.real, p.imag),
        np.append(b.real, b.imag),
        np.append(2 * c.real, -2 * c.imag),
    )
    half, identity = np.longdouble(dt.item()) / 2, np.eye(len(A), dtype=np.longdouble)
    M = identity - half * (A - 2 * np.outer(p, p))
    G = np.linalg.inv(M.astype(np.float64)).astype(np.longdouble)
    for _ in range(3):
        G = G @ (2 * identity - M @ G)  # Newton's iteration: each doubles the digits
    square, found = 2 * G - identity, dict.fromkeys(places, 2 * half * (G @ b))
    for bit in range(max(places).bit_length()):
        found = {place: square @ x if place >> bit & 1 else x for place, x in found.items()}
        square = square @ square
    return [float(c @ found[place]) for place in places]


@pytest.mark.parametrize("length", [1, 50, 700])
@pytest.mark.usefixtures("served")
def test_without_low_rank_it_is_the_diagonal_kernel(length: int) -> None:
    given = draw(3, 4, 0, 2, dtype=torch.complex128)
    diagonal = diagonal_kernel(
        given["Lambda"], given["B"], given["C"], given["dt"], length, method="bilinear"
    )
    torch.testing.assert_close(
        dplr_kernel(**given, length=length), diagonal, rtol=1e-11, atol=1e-12
    )


@pytest.mark.usefixtures("served")
def test_a_longer_kernel_begins_with_a_shorter_one() -> None:
    """C is the true C: the same parameters serve every length, across changes of the block size."""
    given = draw(2, 6, 1, 1, dtype=torch.complex128)
    lengths = [1, 9, 255, 1024, 20_000]
    assert len({steps_of(length) for length in lengths}) > 1
    longest = dplr_kernel(**given, length=20_000)
    for length in lengths:
        shorter = dplr_kernel(**given, length=length)
        assert (shorter - longest[..., :length]).abs().max() < 1e-12 * longest.abs().max()


@pytest.mark.usefixtures("served")
def test_an_undamped_system_does_not_grow() -> None:
    given = draw(1, 8, 1, 1, dtype=torch.complex128)
    given["Lambda"] = 1j * given["Lambda"].imag
    K = dplr_kernel(**given, length=20_000)
    assert K[..., 10_000:].abs().max() <= K[..., :10_000].abs().max() * (1 + 1e-9)


@pytest.mark.usefixtures("served")
def test_types_may_differ() -> None:
    """K has C's precision; what decides powers may be wider, and each gradient has its argument's type."""
    given = draw(2, 4, 1, 1, dtype=torch.complex128)
    mixed = {**given, "B": given["B"].to(torch.complex64), "C": given["C"].to(torch.complex64)}
    function = partial(dplr_kernel, length=40)
    wide, narrow = evaluate(function, given), evaluate(function, mixed)
    assert narrow["output 0"].dtype == torch.float32
    for name, each in narrow.items():
        assert (each - wide[name]).abs().max() < 1e-5 * wide[name].abs().max(), name
        if name.startswith("gradient"):
            assert each.dtype == mixed[name.split()[-1]].dtype


@pytest.mark.usefixtures("served")
def test_autocast_has_no_say() -> None:
    """Autocast reaches into an operator's body: products in float32 would become bfloat16."""
    given = {name: each.requires_grad_() for name, each in draw(2, 4, 1, 1).items()}
    function = partial(dplr_kernel, length=100)
    expected = evaluate(function, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = evaluate(function, given)
    for name, each in got.items():
        assert torch.equal(each, expected[name]), name


@pytest.mark.usefixtures("served")
def test_a_pole_of_zero() -> None:
    """Lambda = -2 / dt without low rank: Abar is 0, and so is every tap but the first."""
    one = torch.ones(1, 1, dtype=torch.complex128)
    dt = torch.full((1,), 0.1, dtype=torch.float64)
    K = dplr_kernel(-20 * one, 0 * one[None], one, one[None], dt, 40)[0, 0]
    assert K[0] == pytest.approx(0.1)
    assert K[1:].abs().max() < 1e-15


def test_the_kernel_never_holds_all_states() -> None:
    """h = 64, n = 64, L = 16384: K and its gradient are 8 MB, the states of all steps would be 537 MB in float64."""
    program = """
import resource, torch
from adder import S4
torch.set_num_threads(2)
layer = S4(64, 64)
def run(length):
    layer.kernel(length).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(-run(64) + run(16384))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 8e6 + 537e6 / 8


@pytest.mark.usefixtures("served")
def test_strided_inputs() -> None:
    given = draw(3, 6, 2, 2, dtype=torch.complex128)
    given = {
        "Lambda": given["Lambda"][::2, ::3],
        "P": given["P"].flip(0)[:, ::2, ::3],
        "B": given["B"].conj()[::2, ::3],
        "C": given["C"].transpose(0, 1).contiguous().transpose(0, 1)[:, ::2, ::3],
        "dt": given["dt"][::2],
    }
    assert_as_good_as_reference(
        partial(dplr_kernel, length=40), partial(dplr_kernel_reference, length=40), given
    )


@pytest.mark.parametrize("length", [1, 6, 70])
@pytest.mark.usefixtures("served")
def test_gradcheck(length: int) -> None:
    given = [each.requires_grad_() for each in draw(2, 2, 1, 2, dtype=torch.complex128).values()]
    assert gradcheck(lambda *each: dplr_kernel(*each, length), given)


def test_threads_do_not_change_bits() -> None:
    bits_for_threads(lambda: evaluate(partial(dplr_kernel, length=500), draw(9, 8, 1, 2)))


def test_opcheck() -> None:
    given = tuple(each.requires_grad_() for each in draw(2, 3, 1, 2).values())
    torch.library.opcheck(torch.ops.adder.dplr_kernel.default, (*given, 9))
    dK = torch.ones(2, 2, 9)
    torch.library.opcheck(
        torch.ops.adder.dplr_kernel_backward.default, (*(each.detach() for each in given), dK)
    )


@pytest.mark.compiles
def test_compiles_whole() -> None:
    function = partial(dplr_kernel, length=20)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, expected = evaluate(compiled, draw(2, 3, 1, 1)), evaluate(function, draw(2, 3, 1, 1))
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"length": 0}, ValueError, "length is 0, expected at least 1"),
    ({"length": 2.5}, TypeError, "length is 2.5, a float, expected a whole number"),
    ({"length": True}, TypeError, "length is True, a bool, expected a whole number"),
    ({"dt": torch.tensor([0.1, -1.0])}, ValueError, "dt has the value -1, expected positive steps"),
    ({"dt": torch.tensor([0.1, torch.nan])}, ValueError, "dt has the value nan, expected positive"),
    ({"dt": 0.1}, TypeError, "dt is a float, expected a tensor"),
    ({"P": None}, TypeError, "P is a NoneType, expected a tensor"),
    ({"Lambda": torch.ones(2, 3)}, TypeError, "Lambda is torch.float32, expected complex64"),
    ({"Lambda": torch.ones(3) + 0j}, ValueError, r"Lambda has shape \(3,\), expected 2 axes"),
    ({"P": torch.ones(2, 3) + 0j}, ValueError, r"P has shape \(2, 3\), expected 3 axes"),
    ({"P": torch.ones(1, 2, 4) + 0j}, ValueError, r"P has shape .* \(r, h, m\) = \(1, 2, 3\)"),
    ({"B": torch.ones(2, 3)}, TypeError, "B is torch.float32, expected torch.complex64 or"),
    ({"C": torch.ones(1, 3, 3) + 0j}, ValueError, r"C has shape \(1, 3, 3\), expected"),
    ({"C": torch.ones(0, 2, 3) + 0j}, ValueError, "C has shape .* axis c is empty"),
    ({"dt": torch.ones(3)}, ValueError, r"dt has shape \(3,\), expected \(h\) = \(2,\)"),
    ({"dt": torch.ones(2).half()}, TypeError, "dt is torch.float16, expected torch.float32 or"),
    ({"dt": torch.ones(2, device="meta")}, ValueError, "dt is on meta, expected cpu"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"dplr_kernel: {message}"):
        dplr_kernel(**{**draw(2, 3, 1, 1), "length": 5, **change})


def test_example_runs() -> None:
    result = doctest.testmod(interface, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
