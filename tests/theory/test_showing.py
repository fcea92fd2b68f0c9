"""A system as equations and as a picture."""

from pathlib import Path

import pytest
import torch
from systems import normal, stable

import adder
from adder import DiscreteStateSpace, StateSpace, UsageError


def test_a_small_system_is_written_out() -> None:
    system = StateSpace([[-0.5, 1], [0, -2]], [[1.0, 0], [0, 3]], [[1.0, -1]], [[0, 0.25]])
    assert str(system) == (
        "dx1/dt = -0.5 x1 + x2 + u1\n"
        "dx2/dt = -2 x2 + 3 u2\n"
        "y      = x1 - x2 + 0.25 u2"
    )  # fmt: skip
    assert repr(system) == "StateSpace(2 states, 2 inputs, 1 output, stable)"


def test_a_small_discrete_system_is_written_out() -> None:
    system = DiscreteStateSpace([[0.5, 0], [1, 0]], [1.0, 0], [[0.0, 1], [0, 0]], dt=0.1)
    assert str(system) == (
        "h1[t] = 0.5 h1[t-1] + x[t]\n"
        "h2[t] = h1[t-1]\n"
        "y1[t] = h2[t]\n"
        "y2[t] = 0"
    )  # fmt: skip
    assert repr(system) == "DiscreteStateSpace(2 states, 1 input, 2 outputs, stable, dt=0.1)"


def test_a_large_system_is_summarised() -> None:
    A, B = adder.hippo("legs", 64)
    system = StateSpace(A, B, normal(64))
    assert str(system) == (
        "dx/dt = A x + B u\n"
        "y     = C x\n"
        "A (64 x 64), B (64 x 1), C (1 x 64)\n"
        "64 states, 1 input, 1 output, stable; poles from -1 to -64"
    )  # fmt: skip
    discrete = str(stable(20, 2, 3).discretize(0.1)).splitlines()
    assert discrete[0] == "h[t] = A h[t-1] + B x[t]"
    assert discrete[1] == "y[t] = C h[t] + D x[t]"
    assert max(map(len, discrete)) <= 80


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 2, 3)])
def test_plots(size: tuple[int, int, int], tmp_path: Path) -> None:
    system = stable(*size)
    for number, shown in enumerate((system, system.discretize(0.1), system.discretize(0.1, "foh"))):
        path = tmp_path / f"{number}.png"
        figure = shown.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        impulse, step, poles = figure.axes
        assert len(impulse.lines) == len(step.lines) == size[1] * size[2]
        assert [axes.get_title() for axes in figure.axes] == [
            "impulse response",
            "step response",
            "poles",
        ]
        drawn = torch.from_numpy(impulse.lines[0].get_ydata())
        assert torch.equal(drawn, shown.impulse().reshape(len(drawn), -1)[:, 0])
        assert len(poles.lines[1].get_xdata()) == shown.states


@pytest.mark.parametrize("name", ["picture.xyz", "missing/picture.png"])
def test_a_picture_that_cannot_be_written_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plot: cannot write .*picture"):
        stable(2, 1, 1).plot(tmp_path / name)


def test_plots_an_unstable_system_over_a_given_time(tmp_path: Path) -> None:
    system = StateSpace([[0.0, 1], [0, 0]], [0.0, 1], [1.0, 0])
    system.plot(tmp_path / "system.svg", t=[0.0, 1, 2])
    assert (tmp_path / "system.svg").read_bytes().startswith(b"<?xml")
    assert len(system.discretize(1.0).plot(length=5).axes[0].lines[0].get_xdata()) == 5
