"""S4Block: the map around a layer, padding, and the same block in pieces."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adder import S4, S4D
from adder.errors import UsageError
from adder.layers import S4Block

OPTIONS: list[dict[str, Any]] = [
    {},
    {"glu": False, "activation": "silu"},
    {"gate": True, "d_model": 5},
    {"activation": "none", "tie_dropout": True, "dropout": 0.3},
]


def block(bidirectional: bool = False, **options: Any) -> S4Block:
    torch.manual_seed(0)
    return (
        S4Block(S4D(6, 8, bidirectional=bidirectional, channels_out=2), **options).double().eval()
    )


def signal(length: int, width: int = 6) -> Tensor:
    return torch.randn(
        2, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("options", OPTIONS)
def test_in_pieces(options: dict[str, Any]) -> None:
    made = block(**options)
    u = signal(50, made.d_model)
    whole, none = made(u)
    assert none is None
    state, parts = made.initial_state(2), []
    for piece in u.split([1, 20, 29], dim=1):
        y, state = made(piece, state)
        parts.append(y)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12


def test_the_equation() -> None:
    made, u = block(gate=True), signal(20)
    y, _ = made.layer(u)
    weight, bias = made.output_linear.weight, made.output_linear.bias
    left, right = F.linear(F.gelu(y), weight, bias).chunk(2, -1)
    expected = left * torch.sigmoid(right) * F.gelu(F.linear(u, made.gate.weight, made.gate.bias))  # type: ignore[union-attr]
    torch.testing.assert_close(made(u)[0], expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_inert(bidirectional: bool) -> None:
    made, u = block(bidirectional), signal(30)
    lengths = torch.tensor([30, 17])
    padded, _ = made(u, lengths=lengths)
    alone, _ = made(u[1:, :17])
    assert (padded[1:, :17] - alone).abs().max() < 1e-12
    if bidirectional:
        assert (made(u)[0][1:, :17] - alone).abs().max() > 1e-3  # it does see what is not masked


def test_tied_dropout_drops_whole_channels() -> None:
    torch.manual_seed(0)
    made = S4Block(S4(40, 4), dropout=0.5, tie_dropout=True, glu=False, activation="none")
    with torch.no_grad():
        made.output_linear.weight.copy_(torch.eye(40))
        made.output_linear.bias.zero_()
    y = made(torch.randn(3, 20, 40))[0]
    dropped = y == 0
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert 0.3 < dropped.float().mean() < 0.7


@pytest.mark.refuses
def test_refuses() -> None:
    layer = S4D(6, 8)
    with pytest.raises(UsageError, match="activation 'swish' is not one of gelu, silu, relu, none"):
        S4Block(layer, activation="swish")
    with pytest.raises(UsageError, match=r"dropout 1.0 must be in \[0, 1\)"):
        S4Block(layer, dropout=1.0)
    with pytest.raises(UsageError, match=r"u has shape \(2, 4, 5\), expected \(batch, length, 6\)"):
        S4Block(layer)(torch.ones(2, 4, 5))
    with pytest.raises(UsageError, match="lengths and a state cannot be given together"):
        S4Block(layer)(torch.ones(2, 4, 6), layer.initial_state(2), lengths=torch.tensor([4, 2]))
    made, u = S4Block(layer), torch.ones(2, 4, 6)
    with pytest.raises(UsageError, match="layer is a Linear, expected an S4 or S4D"):
        S4Block(torch.nn.Linear(3, 3))  # type: ignore[arg-type]
    for lengths, message in (
        (torch.tensor([4]), r"lengths is \(1,\) torch.int64, expected \(2,\) whole numbers"),
        (torch.tensor([4.0, 2.0]), r"lengths is \(2,\) torch.float32"),
        ([4, 2], "lengths is list"),
        (torch.tensor([5, 2]), "lengths holds 5, expected 1 to 4"),
        (torch.tensor([4, -2]), "lengths holds -2, expected 1 to 4"),
    ):
        with pytest.raises(UsageError, match=message):
            made(u, lengths=lengths)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lengths with method 'dss' are not served"):
        S4Block(S4D(6, 8, method="dss"))(u, lengths=torch.tensor([4, 2]))
