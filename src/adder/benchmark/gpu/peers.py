"""Other libraries' functions for the same work, each imported when it is measured."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

PEERS = ("mamba_ssm", "causal_conv1d", "fla")
NOT_INSTALLED = "not installed"
TAPS, EPS = 4, 1e-5
Function = Callable[..., Tensor]


def find_peers() -> dict[str, str]:
    """Peer -> its version, NOT_INSTALLED, or the error that its import ends in."""
    return {"torch": torch.__version__, **{name: _state_of(name) for name in PEERS}}


def is_there(peers: dict[str, str], name: str) -> bool:
    """Whether a peer could be imported."""
    return name in peers and peers[name] != NOT_INSTALLED and not peers[name].startswith("error: ")


def _state_of(name: str) -> str:
    if name not in sys.modules and find_spec(name) is None:
        return NOT_INSTALLED
    try:
        module = import_module(name)
    except Exception as error:  # an extension that fails to load, for another version of torch
        return "error: " + " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return str(getattr(module, "__version__", "of unknown version"))


def mamba_ssm_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """selective_scan_fn on (b d l)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(u, delta, A, B, C, D, z, bias, delta_softplus=True)
    return y


def mamba_ssm_dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """mamba_chunk_scan_combined with its usual chunk."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y: Tensor = mamba_chunk_scan_combined(x, dt, A, B, C, 256, D=D, dt_bias=bias, dt_softplus=True)
    return y


def fla_dual(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> Tensor:
    """chunk_simple_gla, a linear attention with a decay: q = C, k = B, v = dt x, g = dt A, and D x beside it."""
    from fla.ops.simple_gla import chunk_simple_gla

    step = F.softplus(dt.float() + bias)
    heads = x.shape[2]
    q, k = (each.expand(-1, -1, heads, -1).contiguous() for each in (C, B))
    v = (x * step.unsqueeze(-1)).to(x.dtype)
    y: Tensor = chunk_simple_gla(q=q, k=k, v=v, g=step * A, scale=1.0)[0]
    return y + (D.unsqueeze(-1) * x).to(x.dtype)


def causal_conv1d_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """causal_conv1d_fn on (b d l)."""
    from causal_conv1d import causal_conv1d_fn

    y: Tensor = causal_conv1d_fn(x, weight, bias, activation="silu")
    return y


def torch_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv1d by channels on (b d l), where nothing has to be transposed, and F.silu."""
    d, length = x.shape[1:]
    y = F.conv1d(x, weight.unsqueeze(1), bias, padding=TAPS - 1, groups=d)
    return F.silu(y[..., :length])


def torch_norm(x: Tensor, weight: Tensor) -> Tensor:
    """F.rms_norm."""
    return F.rms_norm(x, weight.shape, weight, EPS)


def torch_gated_norm(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
    """F.rms_norm of y silu(z)."""
    return torch_norm(y * F.silu(z), weight)


def torch_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """The scan as it is first written: a loop over time."""
    step = F.softplus(delta.float() + bias)
    state = A.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    ys = []
    for t in range(u.shape[1]):
        now = step[:, t].unsqueeze(-1)
        state = (now * A).exp() * state + (now * u[:, t].unsqueeze(-1)) * B[:, t].unsqueeze(1)
        ys.append((state * C[:, t].unsqueeze(1)).sum(-1) + D * u[:, t])
    y = torch.stack(ys, dim=1) * F.silu(z.float())
    return y.to(u.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (b h l p) by torch's fastest."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
