"""state_space_dual: what it refuses, by the name of the argument."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adder.ops import state_space_dual

ones = torch.ones
X, DT, A, B = ones(2, 3, 4, 5), ones(2, 3, 4), -ones(4), ones(2, 3, 2, 6)
REFUSED = [
    (
        (ones(2, 3, 4), DT, A, B, B),
        {},
        ValueError,
        r"x has shape \(2, 3, 4\), expected 4 axes \(b, l, h, p\)",
    ),
    ((ones(2, 0, 4, 5), DT, A, B, B), {}, ValueError, "axis l is empty"),
    ((X.int(), DT, A, B, B), {}, TypeError, "x is torch.int32"),
    ((X.to(torch.complex64), DT, A, B, B), {}, TypeError, "x is torch.complex64"),
    (
        (X, ones(2, 3, 5), A, B, B),
        {},
        ValueError,
        r"dt has shape .* \(b, l, h\) = \(2, 3, 4\)",
    ),
    ((X, DT.double(), A, B, B), {}, TypeError, "dt is torch.float64, expected torch.float32"),
    ((X, DT, -ones(4, 6), B, B), {}, ValueError, r"A has shape \(4, 6\), expected \(h\) = \(4,\)"),
    ((X, DT, A.double(), B, B), {}, TypeError, "A is torch.float64"),
    ((X, DT, A, ones(2, 3, 6), B), {}, ValueError, r"B has .* 4 axes \(b, l, g, n\)"),
    ((X, DT, A, ones(2, 4, 2, 6), B), {}, ValueError, r"B has .* = \(2, 3, 2, 6\)"),
    ((X, DT, A, ones(2, 3, 3, 6), B), {}, ValueError, "B has .* 3 groups do not divide 4 heads"),
    ((X, DT, A, B.bfloat16(), B), {}, TypeError, "B is torch.bfloat16"),
    ((X, DT, A, B, ones(2, 3, 1, 6)), {}, ValueError, r"C has .* = \(2, 3, 2, 6\)"),
    ((X, DT, A, B, B.to("meta")), {}, ValueError, "C is on meta, expected cpu"),
    ((X, DT, A, B, B, ones(3)), {}, ValueError, r"D has shape \(3,\), expected \(h\) = \(4,\)"),
    ((X, DT, A, B, B, ones(4, 4)), {}, ValueError, r"D has .* \(h, p\) = \(4, 5\)"),
    ((X, DT, A, B, B), {"z": ones(2, 3, 20)}, ValueError, "z has shape"),
    ((X, DT, A, B, B), {"dt_bias": ones(1)}, ValueError, "dt_bias has shape"),
    (
        (X, DT, A, B, B),
        {"state": ones(2, 4, 6, 5)},
        ValueError,
        r"state has .* \(b, h, p, n\) = \(2, 4, 5, 6\)",
    ),
    ((X, DT, A, B, B), {"state": ones(2, 4, 5, 6).half()}, TypeError, "state is torch.float16"),
    ((X, DT, A, B, B), {"seq_idx": ones(2, 3)}, TypeError, "seq_idx is torch.float32"),
    (
        (X, DT, A, B, B),
        {"seq_idx": torch.tensor([[0, 0, 1], [1, 0, 0]], dtype=torch.int32)},
        ValueError,
        "seq_idx goes backwards in row 1, from 1 at step 0 to 0",
    ),
    ((X, DT, A, B, B), {"dt_limit": (1.0, 0.5)}, ValueError, r"dt_limit is \(1.0, 0.5\)"),
    ((X, DT, A, B, B), {"dt_limit": (-1.0, 0.5)}, ValueError, "expected 0 <= least <= largest"),
    ((X, DT, A, B, B), {"dt_limit": (0, math.nan)}, ValueError, "dt_limit is .*nan"),
    ((X, DT, A, B, B), {"dt_limit": 1.0}, ValueError, "dt_limit is 1.0, expected the least and"),
    ((X, DT, A, B, B), {"dt_limit": ("0", 1.0)}, TypeError, "dt_limit holds '0'"),
    ((X, DT, A, B, B), {"chunk_size": 0}, ValueError, "chunk_size is 0, expected at least 1"),
    ((X, DT, A, B, B), {"chunk_size": 2.5}, TypeError, "chunk_size is 2.5, expected a whole"),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("args", "options", "error", "message"), REFUSED)
def test_refuses(
    args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"state_space_dual: .*{message}"):
        state_space_dual(*args, **options)
