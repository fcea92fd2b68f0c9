"""What S4 and S4D refuse: one line each, with the layer, the argument, what came and what was expected."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from adder import S4, S4D
from adder.errors import UsageError

REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: S4(0), "S4: channels is 0, expected a whole number of at least 1"),
    (lambda: S4D("4"), "S4D: channels is '4', expected a whole number"),
    (lambda: S4D(4, 8, channels_out=True), "S4D: channels_out is True, expected a whole number"),
    (lambda: S4D(4, 8, l_max=2.5), "S4D: l_max is 2.5, expected a whole number"),
    (lambda: S4D(4, 8, dt_max=math.inf), "S4D: dt_max is inf, expected a positive number"),
    (lambda: S4D(4, 8, bandlimit=-1.0), "S4D: bandlimit is -1.0, expected a positive number"),
    (lambda: S4D(4, 8, bidirectional="no"), "S4D: bidirectional is 'no', expected True or False"),
    (lambda: S4D(4, 8, lr=-1.0), "S4D: lr of dt is -1.0, expected a number of at least 0"),
    (lambda: S4D(4, 8, init=()), r"S4D: expected a name or names of starts, got \(\)"),
    (lambda: S4(4, 8, measure=None), "S4: expected a name or names of starts, got None"),
    (lambda: S4D(4, 8, init="diag", n_ssm=1), "n_ssm is 1, too few for the 2 starts inv, lin"),
    (lambda: S4D(4, 8, init="lin", real=True), "real=True has the init 'real' alone"),
    (lambda: S4D(4, 8)([1.0]), "S4D: u is a list, expected"),
    (
        lambda: S4D(4, 8)(torch.ones(1, 5, 4).int()),
        "S4D: u is torch.int32, and the layer's parameters are",
    ),
    (lambda: S4D(4, 8)(torch.ones(1, 5, 4).double()), "S4D: u is torch.float64, and the layer's"),
    (
        lambda: S4(4, 8)(torch.ones(1, 5, 4), torch.ones(1, 4, 8)),
        "S4: state has the dtype torch.float32, expected torch.float64",
    ),
    (
        lambda: S4D(4, 8)(
            torch.ones(1, 5, 4), torch.ones(1, 4, 8, dtype=torch.float64, device="meta")
        ),
        "S4D: state has the device meta, expected cpu",
    ),
    (lambda: S4D(4, 8)(torch.ones(1, 5, 4), "state"), "S4D: state has the shape str, expected"),
    (lambda: S4D(4, 8).initial_state(-1), "S4D: batch_size is -1, expected a whole number"),
    (
        lambda: S4D(4, 8)(torch.ones(1, 5, 4), rate=math.inf),
        "S4D: rate is inf, expected a positive",
    ),
    (lambda: S4(4, 7), "S4: state_size 7 is odd, expected pairs"),
    (lambda: S4D(4, 7), "S4D: state_size 7 is odd"),
    (lambda: S4(4, 8, measure="legt", rank=1), "rank is 1, but legt needs at least 2"),
    (lambda: S4(4, 8, measure="nonsense"), "measure is 'nonsense'"),
    (lambda: S4D(4, 8, init="nonsense"), "init is 'nonsense'"),
    (lambda: S4(4, 8, dt_tie=False), "S4: dt_tie=False is not served"),
    (lambda: S4D(4, 8, method="euler"), "S4D: method 'euler' is not one of zoh, bilinear, dss"),
    (lambda: S4D(4, 8, dt_min=0.2), "expected 0 < dt_min <= dt_max, got 0.2, 0.1"),
    (lambda: S4D(4, 8, lr={"A_real": 0.1}), "lr has the key A_real, expected dt, A, P, B or C"),
    (lambda: S4D(4, 8, real_transform="tanh"), "real_transform 'tanh' is not one of exp"),
    (
        lambda: S4D(4, 8)(torch.ones(2, 5, 3)),
        r"S4D: u has shape \(2, 5, 3\), expected \(batch, length, 4\)",
    ),
    (lambda: S4D(4, 8)(torch.ones(2, 0, 4)), r"u has shape \(2, 0, 4\)"),
    (
        lambda: S4D(4, 8)(torch.ones(2, 5, 4), torch.ones(2, 4, 4)),
        r"state has the shape \(2, 4, 4\), expected \(2, 4, 8\)",
    ),
    (lambda: S4(4, 8)(torch.ones(2, 5, 4), seq_idx=torch.zeros(2, 5)), "S4: seq_idx is not served"),
    (
        lambda: S4(4, 8)(torch.ones(2, 5, 4), rate=0.0),
        "S4: rate is 0.0, expected a positive number",
    ),
    (
        lambda: S4D(4, 8, method="dss").initial_state(1),
        "S4D: method 'dss' normalises over the whole length",
    ),
]


@pytest.mark.refuses
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
