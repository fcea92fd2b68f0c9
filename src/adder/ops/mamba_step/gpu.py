"""One token of each stream through a stack of Mamba blocks on a GPU: few kernels, and one CUDA graph of them all.

For one stream a block is four kernels, each a matrix with what follows it; for several streams its large products are
a library's. A kernel may start while the one before it runs, and waits before it reads what that one writes. The graph
of a step reads one set of states and writes another, so two of them, taken in turn, write a text without a copy.
"""

from collections import OrderedDict

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from adder.ops.mamba_step.checks import NAME, check_apart, check_ids, check_shapes, check_states
from adder.ops.mamba_step.gpu_kernels import (
    convolve_kernel,
    enter_kernel,
    norm_kernel,
    project_kernel,
    scan_kernel,
)
from adder.ops.mamba_step.weights import BlockWeights, StackWeights, States

SCAN, SCAN_OF_MANY = {"BLOCK": 16, "num_warps": 4}, {"BLOCK": 64, "num_warps": 4}
GRAPHS = 2  # that are kept, with the states they read and write
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class GpuMambaStack:
    """`MambaStack` on a GPU, for blocks of Mamba with dense matrices. See `MambaStack` for the equations.

    Args:
        weights: used where they lie: a change in place is seen, one of the place is not.

    Raises:
        TypeError, ValueError: `refusal` says which weights there is no kernel for, and why.

    Numbers: sums and states are float32. For one stream so is all that passes between kernels, and for more the
    vectors that meet a matrix are of the parameters' type. The result of a stream does not depend on the streams
    beside it, if they are as many.
    """

    def __init__(self, weights: StackWeights):
        reason = self.refusal(weights)
        if reason is not None:
            raise TypeError(f"{NAME}: {reason}")
        check_shapes(weights)
        self.weights = weights
        self._blocks = [each for each in weights.blocks if isinstance(each, BlockWeights)]
        self._device, self._dtype = weights.norm.device, weights.norm.dtype
        # A kernel that starts before the last one ends needs a multiprocessor of compute capability 9.
        dependent = weights.norm.is_cuda and torch.cuda.get_device_capability(self._device)[0] >= 9
        self._launch = {"DEPENDENT": dependent, **({"launch_pdl": True} if dependent else {})}
        self._graphs: OrderedDict[tuple[int, ...], _Graph] = OrderedDict()

    @staticmethod
    def refusal(weights: StackWeights) -> str | None:
        """Say why the kernels do not serve these weights; None where they do."""
        if not weights.blocks or not all(isinstance(each, BlockWeights) for each in weights.blocks):
            return "on a GPU there are kernels for blocks of Mamba alone"
        if not all(isinstance(each, Tensor) for each in weights.matrices()):
            return "on a GPU there are no kernels for quantised matrices"
        if weights.norm.dtype not in DTYPES:
            return f"the parameters are {weights.norm.dtype}"
        for each in weights.tensors():
            if each.device != weights.norm.device:
                return f"a parameter is on {each.device}, and another on {weights.norm.device}"
            if each.dtype != weights.norm.dtype or not each.is_contiguous():
                return f"a parameter is {each.dtype} with strides {each.stride()}, and another {weights.norm.dtype}"
        return None

    def step(
        self, ids: Tensor, states: States, into: States | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Read one token of each stream; arguments and results are those of `MambaStack.step`, on the GPU.

        With `into`, a call whose states and `into` are those of an earlier call is one launch of a CUDA graph.

        Raises:
            ValueError: ids or a state of another shape, type or device; the message names it.
        """
        check_ids(self.weights, ids)
        check_states(self.weights, "states", states, ids.shape[0])
        states = [(conv.contiguous(), ssm.contiguous()) for conv, ssm in states]
        if into is None:
            new = [(torch.empty_like(conv), torch.empty_like(ssm)) for conv, ssm in states]
        else:
            check_states(self.weights, "into", into, ids.shape[0])
            new = list(into)
            read, written = ([each for pair in pairs for each in pair] for pairs in (states, new))
            check_apart(read, written)
        if self._device.type != "cuda":  # in Triton's interpreter
            return self._run(ids, states, new), new
        with torch.cuda.device(self._device):
            run = self._run if into is None else self._replay
            return run(ids, states, new), new

    def _replay(self, ids: Tensor, states: States, into: States) -> Tensor:
        """Launch the graph of a step on this memory, made where it is new."""
        key = tuple(each.data_ptr() for pair in (*states, *into) for each in pair)
        graph = self._graphs.pop(key, None) or _Graph(self, ids, states, into)
        self._graphs[key] = graph
        if len(self._graphs) > GRAPHS:
            self._graphs.popitem(last=False)
        return graph.replay(ids)

    def _run(self, ids: Tensor, states: States, into: States) -> Tensor:
        """Launch a step and return its logits."""
        w = self.weights
        residual = F.embedding(ids, _dense(w.embedding)).float()
        head = _dense(w.head)[: w.vocab_size]
        if len(ids) == 1:
            for block, old, new in zip(self._blocks, states, into, strict=True):
                self._one_stream(block, residual, old, new)
            return self._project(residual, w.norm, head, None, dtype=self._dtype)
        added: Tensor | None = None
        for block, old, new in zip(self._blocks, states, into, strict=True):
            added = self._streams(block, self._norm(residual, added, block.norm), old, new)
        return F.linear(self._norm(residual, added, w.norm), head)

    def _one_stream(
        self, w: BlockWeights, residual: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
    ) -> None:  # fmt: skip
        """Add a block to the residual."""
        m, d, _, k, _ = w.sizes
        x, z, y = (residual.new_empty(1, d) for _ in range(3))
        tile = _tile(2 * d, m)
        enter_kernel[(2 * triton.cdiv(d, tile["ROWS"]),)](
            residual, w.norm, _dense(w.in_proj), w.in_bias, w.conv_weight, w.conv_bias, old[0], new[0], x, z,
            self.weights.eps, COLUMNS=m, CHANNELS=d, TAPS=k, **tile, **self._launch,
        )  # fmt: skip
        projected = self._project(x, None, _dense(w.x_proj), None)
        self._scan(w, x, z, projected, None, old[1], new[1], y)
        self._project(y, None, _dense(w.out_proj), w.out_bias, residual)

    def _streams(
        self, w: BlockWeights, normed: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]
    ) -> Tensor:  # fmt: skip
        """Return what a block adds to the residual."""
        b, (_, d, _, k, r) = len(normed), w.sizes
        xz = F.linear(normed, _dense(w.in_proj), w.in_bias)
        x, y = (normed.new_empty(b, d) for _ in range(2))
        convolve_kernel[(triton.cdiv(d, 256), triton.cdiv(b, 4))](
            xz, w.conv_weight, w.conv_bias, old[0], new[0], x, b,
            CHANNELS=d, TAPS=k, STREAMS=4, BLOCK=256, num_warps=4, **self._launch,
        )  # fmt: skip
        projected = F.linear(x, _dense(w.x_proj))
        dt = F.linear(projected[:, :r], _dense(w.dt_proj))
        self._scan(w, x, xz[:, d:], projected, dt, old[1], new[1], y)
        return F.linear(y, _dense(w.out_proj), w.out_bias)

    def _scan(
        self, w: BlockWeights, x: Tensor, z: Tensor, projected: Tensor, dt: Tensor | None,
        old: Tensor, new: Tensor, y: Tensor,
    ) -> None:  # fmt: skip
        _, d, n, _, r = w.sizes
        tile = SCAN if dt is None else SCAN_OF_MANY
        scan_kernel[(triton.cdiv(d, tile["BLOCK"]), len(x))](
            x, z, projected, dt, _dense(w.dt_proj), w.dt_bias, w.A_log, w.D, old, new, y, z.stride(0),
            CHANNELS=d, N=n, RANK=r, STATES=triton.next_power_of_2(n), R=triton.next_power_of_2(r),
            **tile, **self._launch,
        )  # fmt: skip

    def _project(
        self, x: Tensor, norm: Tensor | None, weight: Tensor, bias: Tensor | None,
        residual: Tensor | None = None, dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # fmt: skip
        """weight x + bias of one stream, or that added to the residual."""
        size, columns = weight.shape
        out = x.new_empty(1, size if residual is None else 0, dtype=dtype)
        tile = _tile(size, columns)
        project_kernel[(triton.cdiv(size, tile["ROWS"]),)](
            x, norm, weight, bias, residual, out, size, self.weights.eps,
            COLUMNS=columns, **tile, **self._launch,
        )  # fmt: skip
        return out

    def _norm(self, residual: Tensor, added: Tensor | None, norm: Tensor) -> Tensor:
        b, m = residual.shape
        out = residual.new_empty(b, m, dtype=self._dtype)
        norm_kernel[(b,)](
            residual, added, norm, out, self.weights.eps,
            COLUMNS=m, BLOCK=triton.next_power_of_2(m), num_warps=8, **self._launch,
        )  # fmt: skip
        return out


class _Graph:
    """A step on fixed memory, which it keeps: ids are copied in, logits copied out."""

    def __init__(self, stack: GpuMambaStack, ids: Tensor, states: States, into: States):
        self._ids, self._held = ids.clone(), (states, into)
        stack._run(self._ids, states, into)  # compiles, and lets libraries make what they make once
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = stack._run(self._ids, states, into)

    def replay(self, ids: Tensor) -> Tensor:
        self._ids.copy_(ids)
        self._graph.replay()
        return self._logits.clone()


def _dense(weight: object) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def _tile(rows: int, columns: int) -> dict[str, int]:
    """Rows that a program makes, columns that it takes at a time, its warps: small programs for few rows."""
    whole = columns & -columns  # the largest power of two that divides it
    block = min(whole if whole >= 256 else triton.next_power_of_2(columns), 512)
    return {"ROWS": 1 if rows < 1024 else 4, "BLOCK": block, "num_warps": 4}
