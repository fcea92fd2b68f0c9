"""A linear system as equations on a terminal."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from adder.theory.linear_system import LinearSystem

_SMALL = 6  # states, inputs and outputs that are still written out


def equations(system: "LinearSystem", derivative: str, state: str, before: str, given: str) -> str:
    """One line for each state and output of a small system; shapes, and the slowest and fastest pole, of a large one.

    derivative: left side of the state's equation, with {} for its number; before, given: what state and
    input are called on the right; state: what the output sees.
    """
    n, p, q = system.states, system.inputs, system.outputs
    if max(n, p, q) <= _SMALL:
        left = [derivative.format(_count(i, n)) for i in range(n)]
        left += [_output(given).format(_count(i, q)) for i in range(q)]
        befores = [before.format(_count(i, n)) for i in range(n)]
        states = [state.format(_count(i, n)) for i in range(n)]
        inputs = [given.format(_count(i, p)) for i in range(p)]
        right = [_sum([*a, *b], befores + inputs) for a, b in zip(system.A, system.B, strict=True)]
        right += [_sum([*c, *d], states + inputs) for c, d in zip(system.C, system.D, strict=True)]
        width = max(map(len, left))
        return "\n".join(f"{one:{width}} = {other}" for one, other in zip(left, right, strict=True))
    x, h, u = before.format(""), state.format(""), given.format("")
    top, bottom = derivative.format(""), _output(given).format("")
    direct = f" + D {u}" if bool(system.D.any()) else ""
    width = max(len(top), len(bottom))
    lines = [f"{top:{width}} = A {x} + B {u}", f"{bottom:{width}} = C {h}{direct}"]
    shapes = [f"{letter} ({rows} x {columns})" for letter, rows, columns in _shapes(n, p, q)]
    poles = system.poles
    ends = f"poles from {number(complex(poles[0]))} to {number(complex(poles[-1]))}"
    lines.append(", ".join(shapes if direct else shapes[:3]))
    return "\n".join([*lines, f"{described(system)}; {ends}"])


def described(system: "LinearSystem") -> str:
    """3 states, 1 input, 2 outputs, stable."""
    counts = [
        f"{count} {word}{'' if count == 1 else 's'}"
        for count, word in (
            (system.states, "state"),
            (system.inputs, "input"),
            (system.outputs, "output"),
        )
    ]
    return ", ".join([*counts, "stable" if system.is_stable else "not stable"])


def number(value: complex) -> str:
    """Four digits, and the imaginary part where there is one."""
    if value.imag == 0:
        return f"{value.real:.4g}"
    return f"{value.real:.4g} {'-' if value.imag < 0 else '+'} {abs(value.imag):.4g}i"


def _shapes(n: int, p: int, q: int) -> list[tuple[str, int, int]]:
    return [("A", n, n), ("B", n, p), ("C", q, n), ("D", q, p)]


def _output(given: str) -> str:
    return "y{}[t]" if given.endswith("[t]") else "y{}"


def _count(i: int, of: int) -> str:
    return "" if of == 1 else str(i + 1)


def _sum(coefficients: list[Tensor], names: list[str]) -> str:
    """2 x1 - x2, without what is zero."""
    text = ""
    for coefficient, name in zip(coefficients, names, strict=True):
        value = float(coefficient)
        if value == 0:
            continue
        sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
        size = f"{abs(value):.4g}"
        text += sign + ("" if size == "1" else f"{size} ") + name
    return text or "0"
