"""One token of each stream through a whole stack of Mamba or Mamba-2 blocks, in one native call."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adder.ops import native
from adder.ops.mamba_step.checks import NAME, check_apart, check_ids, check_shapes, check_states
from adder.ops.mamba_step.weights import (
    BlockWeights,
    Mamba2BlockWeights,
    StackWeights,
    States,
    Weight,
)
from adder.ops.quantized_linear.weight import QuantizedWeight

__all__ = ["BlockWeights", "Mamba2BlockWeights", "MambaStack", "StackWeights", "Weight"]


class MambaStack:
    r"""The weights of a stack of blocks, its embedding and its head, ready to take one token at a time.

        each Mamba block:    x, z = in_proj(rms_norm(residual));  x = silu(short_convolution(x))
                             dt, B, C = x_proj(x);  y = selective_scan(x, dt_proj(dt), A, B, C, D) * silu(z)
        each Mamba-2 block:  z, x B C, dt = in_proj(rms_norm(residual));  x, B, C = silu(short_convolution(x B C))
                             y = gated_norm(state_space_dual(x, dt, A, B, C, D), z)
        both:                residual = residual + out_proj(y)
        logits = head(rms_norm(residual))

    Mamba (Gu & Dao 2023, arXiv:2312.00752), section 3.4 and figure 3, and Mamba-2 (Dao & Gu 2024, arXiv:2405.21060),
    figure 6, for a length of one. The whole token is one call: its cost is one pass over the weights. It has no
    gradients. The blocks of a stack are of one kind.

    Axes: b streams, v vocabulary, d inner channels, k taps, n state size, h heads of p channels in g groups.

    Args:
        weights: the parameters. They are used where they lie when the stack is made: a change in place is seen, one
            of the place, as by `module.to`, is not. Matrices are float32, bfloat16, int8 or int4; all other parameters
            float32, or all bfloat16.

    Raises:
        TypeError, ValueError: `MambaStack.refusal` says which weights there is no kernel for, and why.

    Numbers: activations, states of the scan and sums are float32. Beside a bfloat16 or quantised matrix the vector it
    multiplies is rounded, as PyTorch and `quantized_linear` do. The result of a stream does not depend on the
    streams beside it, nor on the number of threads. A stack may be stepped by several Python threads at once.
    """

    def __init__(self, weights: StackWeights):
        reason = self.refusal(weights)
        if reason is not None:
            raise TypeError(f"{NAME}: {reason}")
        check_shapes(weights)
        self.weights = weights
        # Their memory stays, even where a module gives its parameter other memory.
        self._alive = [each.detach() for each in weights.tensors()]
        self._dtype = weights.norm.dtype
        module = native.module()
        assert module is not None
        one = weights.blocks[0]
        kind = module.MambaStack if isinstance(one, BlockWeights) else module.Mamba2Stack
        m, d, n, k, *more = one.sizes
        self._native = kind(
            native.STORAGE[self._dtype],
            [m, d, n, k, weights.vocab_size, *more],
            weights.eps,
            [
                (
                    [_matrix(each) for each in block.matrices()],
                    [native.address(each) for each in block.small()],
                    block.options(),
                )
                for block in weights.blocks
            ],
            _matrix(weights.embedding),
            _matrix(weights.head),
            native.address(weights.norm),
        )

    @staticmethod
    def refusal(weights: StackWeights) -> str | None:
        """Say why the kernel does not serve these weights; None where it does."""
        if native.module() is None:
            return f"there are no C++ kernels here: {native.status().reason}"
        if not weights.blocks:
            return "there are no blocks"
        dense = [each for each in weights.matrices() if isinstance(each, Tensor)]
        held = [each.codes for each in weights.matrices() if isinstance(each, QuantizedWeight)]
        small = list(weights.small())
        for each in (*dense, *held, *small):
            if not each.is_cpu:
                return f"a parameter is on {each.device}, and the kernel serves the CPU"
        for each in dense:
            if each.dtype not in (torch.float32, torch.bfloat16) or not each.is_contiguous():
                return f"a matrix is {each.dtype} with strides {each.stride()}"
        for packed in weights.matrices():
            if isinstance(packed, QuantizedWeight) and not (
                packed.codes.is_contiguous() and packed.scales.is_contiguous()
            ):
                return "the codes or scales of a matrix do not lie side by side"
        for each in small:
            if each.dtype != weights.norm.dtype or not each.is_contiguous():
                return f"a parameter is {each.dtype} with strides {each.stride()}, and another {weights.norm.dtype}"
        if weights.norm.dtype not in (torch.float32, torch.bfloat16):
            return f"the parameters are {weights.norm.dtype}"
        return None

    def step(
        self, ids: Int[Tensor, " b"], states: States, into: States | None = None
    ) -> tuple[Float[Tensor, "b v"], list[tuple[Tensor, Tensor]]]:
        """Read one token of each stream.

        Args:
            ids: int64, each below the rows of the embedding.
            states: for each block conv (b k-1 d), in the type of the parameters, and ssm (b d n), float32; of Mamba-2
                (b k-1 d+2gn) and (b h p n).
            into: states that nobody needs any more, to be overwritten and returned; None makes new ones. Fresh memory
                costs a large batch more than the arithmetic does.

        Returns:
            The logits (b v) in the type of the parameters, and the states after the token.

        Raises:
            ValueError: ids or a state of another shape, type or device; the message names it.
        """
        check_ids(self.weights, ids)
        low, high = (int(each) for each in torch.aminmax(ids))
        if low < 0 or high >= self.weights.embedding.shape[0]:
            raise ValueError(
                f"{NAME}: ids holds {low if low < 0 else high}, "
                f"expected 0 to {self.weights.embedding.shape[0] - 1}"
            )
        b = ids.shape[0]
        check_states(self.weights, "states", states, b)
        held = [each.contiguous() for pair in states for each in pair]
        read = [each.data_ptr() for each in held]
        if into is None:
            conv_size, ssm_size = self.weights.blocks[0].state_shapes(b)
            into = [
                (torch.empty(conv_size, dtype=self._dtype), torch.empty(ssm_size)) for _ in states
            ]
        else:
            check_states(self.weights, "into", into, b)
            check_apart(held, [each for pair in into for each in pair])
        written = [each.data_ptr() for pair in into for each in pair]
        ids = ids.contiguous()
        logits = torch.empty(b, self.weights.vocab_size, dtype=self._dtype)
        self._native.run(
            native.threads(),
            b,
            ids.data_ptr(),
            read,
            written,
            logits.data_ptr(),
        )
        return logits, list(into)


def _matrix(weight: Weight) -> native.Matrix:
    if isinstance(weight, QuantizedWeight):
        return native.matrix(
            weight.codes, weight.scales, weight.rows, weight.columns, weight.scheme
        )
    rows, columns = weight.shape
    return native.matrix(weight, None, rows, columns, weight.dtype)
