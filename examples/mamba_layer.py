"""A Mamba layer in a training loop of your own: recall the number that followed the mark.

    python examples/mamba_layer.py

Each sequence is noise in which one step is marked; the value at that step is to be told at the
end, many steps later. A layer that selects what it remembers learns it; a fixed filter cannot.
"""

import torch
from torch import Tensor, nn

from adder import Mamba


class Recall(nn.Module):
    """(b, l, 2) values and marks -> (b,) the marked value."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.enter = nn.Linear(2, channels)
        self.mamba = Mamba(channels)
        self.leave = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.enter(x)
        y, _ = self.mamba(u)
        return self.leave(u + y)[:, -1, 0]


def batch(rows: int, length: int) -> tuple[Tensor, Tensor]:
    values = torch.rand(rows, length) * 2 - 1
    places = torch.randint(length - 4, (rows,))
    marks = nn.functional.one_hot(places, length).float()
    return torch.stack([values, marks], dim=-1), values.gather(1, places[:, None])[:, 0]


def main(steps: int = 400, length: int = 32) -> tuple[float, float]:
    """Train, and return the mean squared error before and after."""
    torch.manual_seed(0)
    model = Recall()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    @torch.no_grad()
    def error() -> float:
        x, wanted = batch(256, length)
        return float((model(x) - wanted).square().mean())

    before = error()
    for _ in range(steps):
        x, wanted = batch(32, length)
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, error()


if __name__ == "__main__":
    print("mean squared error: {:.3f} before, {:.4f} after".format(*main()))
