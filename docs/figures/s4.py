"""Why S4's matrix is split, and the kernels that come of it."""

import math
from fractions import Fraction
from typing import Any

import torch
from matplotlib.figure import Figure as Picture

import adder
from adder.theory import diagonal
from figures.style import BLUE, GREEN, GREY, ORANGE, RED, Figure, note

SIZES = (2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)


def exact_condition(n: int) -> float:
    """|V| |V^-1| (Frobenius) of the eigenvectors of HiPPO-LegS, each of length 1, in rational numbers.

    With r_i = sqrt(2i+1), A = diag(r) M diag(1/r), and M, lower triangular with the eigenvalues -1 ... -n, is whole.
    """
    M = [[-(2 * j + 1) if i > j else -(i + 1) for j in range(n)] for i in range(n)]
    V = [[Fraction(i == j) for j in range(n)] for i in range(n)]
    for j in range(n):
        for i in range(j + 1, n):
            V[i][j] = sum((M[i][k] * V[k][j] for k in range(j, i)), Fraction(0)) / (i - j)
    inverse = [[Fraction(i == j) for j in range(n)] for i in range(n)]
    for j in range(n):
        for i in range(j + 1, n):
            inverse[i][j] = -sum((V[i][k] * inverse[k][j] for k in range(j, i)), Fraction(0))
    weights = [2 * i + 1 for i in range(n)]
    lengths = [sum(weights[i] * V[i][j] ** 2 for i in range(n)) for j in range(n)]
    total = sum(
        lengths[j] * sum(inverse[j][i] ** 2 / weights[i] for i in range(n)) for j in range(n)
    )
    return math.sqrt(n) * math.sqrt(total)


def eigenvectors_data() -> dict[str, Any]:
    """Condition numbers, and how well A is rebuilt from eigenvectors in float64: its own, and the normal part's."""
    own, normal, own_error, normal_error = [], [], [], []
    for n in SIZES:
        A, _ = adder.hippo("legs", n)
        values, V = torch.linalg.eig(A)
        rebuilt = (V * values) @ torch.linalg.inv(V)
        own_error.append(float((rebuilt - A).abs().max() / A.abs().max()))
        form = adder.nplr("legs", n)
        unitary = torch.cat([form.V, form.V.conj()], dim=1)
        own.append(exact_condition(n))
        normal.append(
            float(torch.linalg.norm(unitary) * torch.linalg.norm(torch.linalg.inv(unitary)))
        )
        normal_error.append(float((form.rebuild()[0] - A).abs().max() / A.abs().max()))
    return {
        "sizes": SIZES, "own": own, "normal": normal,
        "own_error": own_error, "normal_error": normal_error,
    }  # fmt: skip


def draw_eigenvectors(picture: Picture, data: dict[str, Any]) -> None:
    """The condition on the left, what is left of A on the right."""
    left, right = picture.subplots(1, 2)
    n = data["sizes"]
    left.axhspan(2.0**53, 1e99, color=RED, alpha=0.08, linewidth=0)
    left.semilogy(n, data["own"], "o-", color=RED, markersize=3.6)
    left.semilogy(n, data["normal"], "o-", color=BLUE, markersize=3.6)
    left.set(xlabel="state size n", ylim=(0.1, 1e50), xlim=(0, 66))
    left.set_title("condition number of the eigenvectors")
    note(left, 30, 1e30, "of A itself", color=RED, ha="right")
    note(left, 36, 1e4, "of its normal part: n", color=BLUE)
    note(left, 64, 1e17, "no digit of float64 survives", color=RED, ha="right")
    right.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    right.semilogy(n, data["own_error"], "o-", color=RED, markersize=3.6)
    right.semilogy(n, data["normal_error"], "o-", color=BLUE, markersize=3.6)
    right.set(xlabel="state size n", xlim=(0, 66))
    right.set_title("A rebuilt from them in float64: error")
    note(right, 64, 3e-13, "through the normal part", color=BLUE, ha="right")
    note(right, 45, 1e19, "through those of A", color=RED, ha="right")
    note(right, 2, 2, "nothing is right", color=GREY)


CHANNELS = ((BLUE, 0.03), (GREEN, 0.01), (ORANGE, 0.003))
STARTS = {"legs": (BLUE, "o"), "lin": (RED, "s"), "inv": (GREEN, "^")}


def kernels_data() -> dict[str, Any]:
    """One C read by S4 and by S4D at three step sizes, and the frequencies that S4D starts from.

    C is what reads c . h, the HiPPO state's own coordinates: c V over one half of each conjugate pair.
    """
    h, form = len(CHANNELS), adder.nplr("legs", 64)
    c = torch.zeros(64, dtype=torch.float64)
    c[:10] = torch.randn(10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    dt = torch.tensor([step for _, step in CHANNELS], dtype=torch.float64)
    Lambda, B, C = (x.expand(h, 32) for x in (form.Lambda, form.B, c.to(form.V) @ form.V))
    P = form.P[:, None].expand(1, h, 32)
    s4 = adder.ops.dplr_kernel(Lambda, P, B, C[None], dt, 4000)
    s4d = adder.ops.diagonal_kernel(Lambda, B / 2, C[None], dt, 4000)
    starts = {name: diagonal(name, 64)[0].imag.sort().values for name in STARTS}
    return {"s4": s4[0] / dt[:, None], "s4d": s4d[0] / dt[:, None], "starts": starts}


def draw_kernels(picture: Picture, data: dict[str, Any]) -> None:
    """Kernels on the left, frequencies on the right."""
    left, right = picture.subplots(1, 2, width_ratios=[1.75, 1])
    ago = torch.arange(4000) + 0.5
    left.plot(ago, data["s4d"][1], color=CHANNELS[1][0], linewidth=0.7, alpha=0.5)
    for row, (color, dt) in enumerate(CHANNELS):
        left.plot(ago, data["s4"][row], color=color, label=f"dt = {dt:g}")
    left.set(xlabel="steps ago", ylabel="K[l] / dt", xscale="log", xlim=(0.5, 4000))
    left.set_title("S4 at three step sizes; thin: S4D at dt = 0.01")
    left.legend(loc="lower right")
    for name, (color, mark) in STARTS.items():
        frequencies = data["starts"][name]
        right.plot(
            range(len(frequencies)), frequencies, mark, color=color, markersize=3, label=name
        )
    right.set(yscale="symlog", xlabel="pair of eigenvalues", ylabel="frequency Im $\\lambda$")
    right.set_title("how S4D starts")
    right.legend(loc="lower right")


FIGURES = (
    Figure("eigenvectors", (7.2, 2.9), eigenvectors_data, draw_eigenvectors),
    Figure("kernels", (7.2, 3.0), kernels_data, draw_kernels),
)
