"""Elementary functions that the Triton kernels share."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), relative error 2e-7 at any x.

    log1p(e) / e on [0, 1] is interpolated at Chebyshev's nodes: 1.3e-7.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    p = -0.0031760570127516985 * e + 0.019542526453733444
    p = p * e - 0.056373611092567444
    p = p * e + 0.10543623566627502
    p = p * e - 0.1526966691017151
    p = p * e + 0.1966327428817749
    p = p * e - 0.24951615929603577
    p = p * e + 0.33329710364341736
    p = p * e - 0.49999892711639404
    p = p * e + 1.0
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + p * e


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))
