"""K[l] = c Abar^l Bbar and its adjoint for dense real Abar, in vectorised PyTorch, for every device.

Time is cut in two, l = a S + s, so that K is one product of two small tables:

    K[a S + s] = Y[a] . X[s]        X[s] = Abar^s Bbar        Y[a] = c Abar^(a S)

The tables are doubled, X <- (X, Abar^k X), with powers of Abar squared on the way; the adjoint runs the same steps
from the end. Everything is float64, whatever the type of K: autocast and TF32, which reach into an operator's
products in float32, have no say. Nothing of size (h, n, l) exists.
"""

import torch
from torch import Tensor

MOST_BYTES = 64_000_000  # of the matrices held at once for the adjoint


def steps_of(length: int) -> int:
    """S: a power of two. A few times fewer steps than blocks, since blocks cost no squarings in C++."""
    steps = 32
    while steps < 256 and 16 * steps * steps <= length:
        steps *= 2
    return steps


def parts_of(h: int, n: int) -> int:
    """How many systems to take at once."""
    return max(1, min(h, MOST_BYTES // (16 * n * n * 8)))


def squares(M: Tensor, count: int) -> list[Tensor]:
    """M^1, M^2, M^4 ...: those that add up to any power up to `count`."""
    found = [M]
    while len(found) < count.bit_length():
        found.append(found[-1] @ found[-1])
    return found


def krylov(rows: Tensor, powers: list[Tensor], count: int) -> Tensor:
    """(..., 1, n) to (..., count, n): row k is the given one times M^k, by doubling with the `squares` of M."""
    for power in powers:
        have = rows.shape[-2]
        if have < count:
            rows = torch.cat([rows, rows[..., : count - have, :] @ power], dim=-2)
    return rows


class _Tables:
    """X (h S n), Y (h c A n), and the powers of Abar that doubled them, in the order they were used."""

    def __init__(self, Abar: Tensor, Bbar: Tensor, c: Tensor, length: int):
        self.steps = min(steps_of(length), 1 << (length - 1).bit_length())
        self.blocks = -(-length // self.steps)
        self.powers = [Abar]
        self.X, self.Y = Bbar.unsqueeze(1), c.movedim(0, 1).unsqueeze(2)
        self.sizes: list[int] = []  # rows that each doubling added
        while (have := self.X.shape[1]) < self.steps:
            self.X = torch.cat([self.X, self.X @ self._power(have).mT], dim=1)
        self.first = len(self.sizes)
        while (have := self.Y.shape[2]) < self.blocks:
            more = min(have, self.blocks - have)
            power = self._power(more).unsqueeze(1)
            self.Y = torch.cat([self.Y, self.Y[:, :, :more] @ power], dim=2)

    def _power(self, added: int) -> Tensor:
        """The power for the next doubling: the square of the last one."""
        if self.sizes:
            self.powers.append(self.powers[-1] @ self.powers[-1])
        self.sizes.append(added)
        return self.powers[-1]


def forward(Abar: Tensor, Bbar: Tensor, c: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Return K (c h l): Abar (h n n), Bbar (h n), c (c h n)."""
    h, n = Bbar.shape
    part = parts_of(h, n)
    if part < h:
        pieces = zip(Abar.split(part), Bbar.split(part), c.split(part, dim=1), strict=True)
        return torch.cat([forward(*each, length, dtype) for each in pieces], dim=1)
    tables = _Tables(Abar, Bbar, c, length)
    K = tables.Y @ tables.X.mT.unsqueeze(1)
    return K.flatten(2)[..., :length].movedim(0, 1).to(dtype)


def backward(Abar: Tensor, Bbar: Tensor, c: Tensor, dK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of Abar, Bbar and c."""
    h, n = Bbar.shape
    part = parts_of(h, n)
    if part < h:
        arguments = (Abar.split(part), Bbar.split(part), c.split(part, 1), dK.split(part, 1))
        found = [backward(*each) for each in zip(*arguments, strict=True)]
        dAbar, dBbar, dc = zip(*found, strict=True)
        return torch.cat(dAbar), torch.cat(dBbar), torch.cat(dc, dim=1)
    length = dK.shape[-1]
    tables = _Tables(Abar, Bbar, c, length)
    padded = torch.nn.functional.pad(
        dK.double().movedim(1, 0), (0, tables.blocks * tables.steps - length)
    )
    grid = padded.unflatten(-1, (tables.blocks, tables.steps))  # (h c A S)
    X, Y = tables.X, tables.Y
    dY, dX = grid @ X.unsqueeze(1), (grid.mT @ Y).sum(1)
    dpower = torch.zeros_like(Abar)
    for level in reversed(range(len(tables.sizes))):
        power, size = tables.powers[level], tables.sizes[level]
        dpower = dpower @ power.mT + power.mT @ dpower  # of the square
        if level >= tables.first:
            kept, added = dY.split([dY.shape[2] - size, size], dim=2)
            dpower = dpower + (Y[:, :, :size].mT @ added).sum(1)
            dY = torch.cat(
                [kept[:, :, :size] + added @ power.mT.unsqueeze(1), kept[:, :, size:]], 2
            )
        else:
            kept, added = dX.split([dX.shape[1] - size, size], dim=1)
            dpower = dpower + added.mT @ X[:, :size]
            dX = kept + added @ power
    return dpower, dX.squeeze(1), dY.squeeze(2).movedim(1, 0)
