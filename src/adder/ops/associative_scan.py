"""The addition that adder is named after: (a1, x1) + (a2, x2) = (a2 a1, a2 x1 + x2).

It is associative, so a recurrence h[t] = a[t] h[t-1] + x[t] can be added up in any grouping: here by doubling,
in log2(l) rounds over whole tensors (Hillis & Steele 1986; S5, arXiv:2208.04933, appendix H). After each round a
step holds the sum of twice as many steps before it. Nothing is divided by a decay, so a decay of zero is exact.

Decays are multiplied before a state is seen: where they grow past the largest number, a state of zero becomes NaN,
and one that would stay finite infinite. In float32 that takes 32 decays above 16, or 1024 above 1.09.
"""

import torch
from torch import Tensor


def associative_scan(a: Tensor, x: Tensor, seq_idx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Add up along axis 1 of (b, l, ...): return the product of the decays up to each step, and h.

    h before the first step is zero. Where seq_idx (b, l) changes, h starts anew: the state of another
    packed sequence is not read, whatever it holds, and the product is zero from there on.
    """
    shift = 1
    while shift < x.shape[1]:
        late = a[:, shift:]
        added, decay = late * x[:, :-shift], late * a[:, :-shift]
        if seq_idx is not None:
            joined = seq_idx[:, shift:] == seq_idx[:, :-shift]
            joined = joined.reshape(joined.shape + (1,) * (x.ndim - 2))
            added, decay = torch.where(joined, added, 0), torch.where(joined, decay, 0)
        x = torch.cat([x[:, :shift], x[:, shift:] + added], dim=1)
        a = torch.cat([a[:, :shift], decay], dim=1)
        shift *= 2
    return a, x
