"""Weights of 8 and 4 bits: how a matrix lies in memory and in a file, and how it is rounded to them."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from adder.ops.checks import expect_floating

Scheme = Literal["int8", "int4"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

TILE = 16  # rows that lie side by side
GROUP = 32  # columns that share a scale
_STEP = 4  # columns of a row that lie side by side
_ZERO = {"int8": 128, "int4": 8}  # the code of zero
_CODES_OF_GROUP = {"int8": GROUP, "int4": GROUP // 2}  # bytes for each row
# Where the largest weight of a group goes, in steps of the scale. The range is -8 to 7, so a negative scale
# gives a group whose largest weight is positive one step more.
_PLACES = (-8.5, -8.0, -7.5, -7.0, -6.5, 7.0, 7.5)
_BLOCK = 1 << 20  # weights that are rounded at once, to bound memory


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix W (rows, columns) of int8 or int4 codes, with a scale for each row and group of 32 columns.

        W[r, c] = scale[r, c // 32] * w[r, c]      w in [-127, 127] for int8, in [-8, 7] for int4

    Attributes:
        codes: uint8, (tiles, groups, 8, 16, 4) for int8 and (tiles, groups, 4, 16, 4) for int4; a tile is 16 rows.
        scales: bfloat16, (tiles, groups, 16). Rows and columns beyond the matrix are zeros.
        rows, columns: the size of W.
        scheme: "int8" or "int4".

    Raises:
        ValueError: a shape or device disagrees, or the scheme is unknown.
        TypeError: a type disagrees.

    Example:
        >>> weight = quantize(torch.tensor([[1.0, -2.0, 0.5]]), "int8")
        >>> weight.shape, weight.codes.shape, weight.scales.shape
        ((1, 3), torch.Size([1, 1, 8, 16, 4]), torch.Size([1, 1, 16]))
        >>> weight.dequantize().mul(10).round().tolist()
        [[10.0, -20.0, 5.0]]
    """

    codes: Tensor
    scales: Tensor
    rows: int
    columns: int
    scheme: Scheme

    def __post_init__(self) -> None:
        check_layout(
            "QuantizedWeight", self.codes, self.scales, self.rows, self.columns, self.scheme
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and the scales, padding included."""
        return self.codes.nbytes + self.scales.nbytes

    def integers(self) -> Int[Tensor, "padded_rows groups group"]:
        """w as int8, with its padding: the codes without the number that makes them unsigned."""
        return _unpack(self.codes, self.scheme).flatten(0, 1)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "rows columns"]:
        """Return the matrix that the codes and the scales stand for."""
        scales = self.scales.permute(0, 2, 1).flatten(0, 1).unsqueeze(-1)
        return self._rows(self.integers(), scales, dtype)[: self.rows]

    def row(
        self, indices: Int[Tensor, "*outer"], dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "*outer columns"]:
        """Return rows of `dequantize`, and no other is computed: what an embedding does.

        Raises:
            TypeError: the indices are no whole numbers.
            IndexError: one lies outside the matrix; looked at on a CPU only.
        """
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(
                f"QuantizedWeight.row: indices is {indices.dtype}, expected whole numbers"
            )
        looks = indices.device.type == "cpu" and not torch.compiler.is_compiling()
        if looks and indices.numel():
            low, high = (int(each) for each in torch.aminmax(indices))
            if low < 0 or high >= self.rows:
                wrong = low if low < 0 else high
                raise IndexError(
                    f"QuantizedWeight.row: indices holds {wrong}, expected 0 to {self.rows - 1}"
                )
        flat = indices.flatten().long()
        tile, lane = flat // TILE, flat % TILE
        codes = self.codes[tile, :, :, lane].unsqueeze(3)
        scales = self.scales[tile, :, lane].unsqueeze(-1)
        rows = self._rows(_unpack(codes, self.scheme).flatten(0, 1), scales, dtype)
        return rows.reshape(*indices.shape, self.columns)

    def _rows(self, integers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        working = torch.promote_types(dtype, torch.float32)
        whole = (integers.to(working) * scales.to(working)).flatten(1)
        return whole[:, : self.columns].to(dtype)


def check_layout(
    operator: str, codes: Tensor, scales: Tensor, rows: int, columns: int, scheme: str
) -> None:
    """Refuse codes and scales that are not those of a (rows, columns) matrix in this scheme."""
    if scheme not in SCHEMES:
        raise ValueError(f"{operator}: scheme is {scheme!r}, expected {' or '.join(SCHEMES)}")
    if min(rows, columns) < 1:
        raise ValueError(f"{operator}: rows {rows} and columns {columns} must be at least 1")
    shapes = layout(rows, columns, scheme)
    wanted = {"codes": (codes, torch.uint8), "scales": (scales, torch.bfloat16)}
    for (name, (tensor, dtype)), shape in zip(wanted.items(), shapes, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{operator}: {name} is a {type(tensor).__name__}, expected a {dtype} tensor"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"{operator}: {name} is {tensor.dtype}, expected {dtype}")
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{operator}: {name} has shape {tuple(tensor.shape)}, expected {shape} "
                f"for {rows} rows and {columns} columns of {scheme}"
            )
    if codes.device != scales.device:
        raise ValueError(f"{operator}: scales is on {scales.device}, expected {codes.device}")


def layout(rows: int, columns: int, scheme: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the codes and of the scales of a (rows, columns) matrix."""
    tiles, groups = -(-rows // TILE), -(-columns // GROUP)
    quarters = _CODES_OF_GROUP[scheme] // _STEP
    return (tiles, groups, quarters, TILE, _STEP), (tiles, groups, TILE)


def zeros(rows: int, columns: int, scheme: Scheme) -> QuantizedWeight:
    """Return a matrix of zeros."""
    codes, scales = layout(rows, columns, scheme)
    zero = _ZERO[scheme]
    byte = zero if scheme == "int8" else zero | zero << 4
    return QuantizedWeight(
        torch.full(codes, byte, dtype=torch.uint8),
        torch.zeros(scales, dtype=torch.bfloat16),
        rows,
        columns,
        scheme,
    )


def quantize(weight: Float[Tensor, "rows columns"], scheme: Scheme) -> QuantizedWeight:
    """Round a matrix to 8 or 4 bits a weight, with a bfloat16 scale for each row and group of 32 columns.

        int8    scale = bfloat16(max |W| / 127)                    w = round(W / scale)
        int4    scale = bfloat16(sum W w / sum w^2)                w = round(W / scale)

    for int4 with that w of some candidates that leaves the least sum of (W - scale w)^2: they put the largest weight
    of the group at -8.5, -8, ... 7.5 steps. Weights are rounded once more against the scale as it is stored. A group
    whose scale would be below float32's normal numbers is zeros.

    Raises:
        ValueError: the weight is no matrix, is empty, or holds a NaN or an infinity; or the scheme is unknown.
        TypeError: the weight is not of a floating point type.
    """
    expect_floating("quantize", "weight", weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"quantize: weight has shape {tuple(weight.shape)}, expected (rows, columns), both at least 1"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"quantize: scheme is {scheme!r}, expected {' or '.join(SCHEMES)}")
    weight = weight.detach()
    rows, columns = weight.shape
    code_shape, scale_shape = layout(rows, columns, scheme)
    codes = torch.empty(code_shape, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(scale_shape, dtype=torch.bfloat16, device=weight.device)
    tiles, width = code_shape[0], code_shape[1] * GROUP
    many = max(1, _BLOCK // (TILE * width))
    for first in range(0, tiles, many):
        block = weight[first * TILE : (first + many) * TILE].float()
        _refuse_not_finite(block, first * TILE)
        block = F.pad(block, (0, width - columns, 0, -len(block) % TILE))
        integers, scale = _rounded(block.unflatten(1, (-1, GROUP)), scheme)
        codes[first : first + many] = _pack(integers.unflatten(0, (-1, TILE)), scheme)
        scales[first : first + many] = scale.unflatten(0, (-1, TILE)).transpose(1, 2)
    return QuantizedWeight(codes, scales, rows, columns, scheme)


def _refuse_not_finite(block: Tensor, first: int) -> None:
    finite = block.isfinite()
    if not bool(finite.all()):
        row, column = (int(each) for each in (~finite).nonzero()[0])
        raise ValueError(
            f"quantize: weight holds {block[row, column].item()} at row {first + row}, column {column}: "
            "expected finite numbers"
        )


def _rounded(groups: Tensor, scheme: str) -> tuple[Tensor, Tensor]:
    """(rows, groups, 32) float32 -> whole numbers as float32, and bfloat16 scales (rows, groups)."""
    if scheme == "int8":
        largest = groups.abs().amax(-1)
        # By a tensor: PyTorch may multiply by the rounded reciprocal of a Python number.
        scale = _stored(largest / torch.full_like(largest, 127))
        return _round(groups, scale, -127, 127), scale
    at = groups.abs().argmax(-1, keepdim=True)
    largest = groups.gather(-1, at).squeeze(-1)
    # In units of the largest weight, so that no square is too large or too small for float32.
    units = groups / largest.masked_fill(largest == 0, 1).unsqueeze(-1)
    best, gain = torch.zeros_like(largest), torch.zeros_like(largest)
    for place in _PLACES:
        integers = (units * place).round_().clamp_(-8, 7)
        # The scale that fits these integers best leaves the error sum W^2 - (sum W w)^2 / sum w^2.
        square = integers.square().sum(-1).clamp_(min=1)
        product = integers.mul_(units).sum(-1)
        fitted = product / square
        better = fitted * product > gain
        best, gain = torch.where(better, fitted, best), torch.where(better, fitted * product, gain)
    scale = _stored(best * largest)
    return _round(groups, scale, -8, 7), scale


def _stored(scale: Tensor) -> Tensor:
    """The scale as bfloat16; zero where it is too small for a normal number."""
    stored = scale.to(torch.bfloat16)
    return stored.masked_fill_(stored.abs() < torch.finfo(torch.bfloat16).tiny, 0)


def _round(groups: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    wide = scale.float().unsqueeze(-1)
    divisor = torch.where(
        wide == 0, torch.inf, wide
    )  # weights of a group without a scale are zeros
    return (groups / divisor).round_().clamp_(low, high)


def _pack(integers: Tensor, scheme: str) -> Tensor:
    """(tiles, 16, groups, 32) -> the codes."""
    codes = (integers + _ZERO[scheme]).to(torch.uint8)
    if scheme == "int4":
        low, high = codes.chunk(2, dim=-1)
        codes = low | high << 4
    return codes.unflatten(-1, (-1, _STEP)).permute(0, 2, 3, 1, 4)


def _unpack(codes: Tensor, scheme: str) -> Tensor:
    """The codes, of any number of rows a tile -> int8 (tiles, rows, groups, 32)."""
    flat = codes.permute(0, 3, 1, 2, 4).flatten(-2)
    if scheme == "int4":
        flat = torch.cat([flat & 15, flat >> 4], dim=-1)
        return flat.to(torch.int8) - _ZERO[scheme]
    return (flat ^ 128).view(torch.int8)  # minus 128 in two's complement, modulo 256
