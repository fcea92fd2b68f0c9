"""S4's kernel by powers of the dense matrix: the truth that every implementation is held against."""

import torch
from torch import Tensor


def dplr_kernel_reference(
    Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, dt: Tensor, length: int
) -> Tensor:
    """Return K (c h l). Arguments as in `adder.ops.dplr_kernel`; the conjugate halves are written out."""
    Lambda, P, B, C = (torch.cat([each, each.conj()], dim=-1) for each in (Lambda, P, B, C))
    A = torch.diag_embed(Lambda) - torch.einsum("rhi,rhj->hij", P, P.conj())
    half = dt[:, None, None] / 2
    identity = torch.eye(A.shape[-1], dtype=A.dtype)
    Abar = torch.linalg.solve(identity - half * A, identity + half * A)
    x = torch.linalg.solve(identity - half * A, (dt[:, None] * B).unsqueeze(-1))
    K = []
    for _ in range(length):
        K.append(torch.einsum("chn,hnq->chq", C, x).real)
        x = Abar @ x
    return torch.cat(K, dim=-1)
