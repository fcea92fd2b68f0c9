"""Which calls the Triton kernels serve. It is asked where no Triton may be: when shapes are traced, too."""

import torch
from torch import Tensor

CHUNK = 256  # steps whose states before are kept, whatever chunk_size says
STORAGE = (torch.float32, torch.bfloat16, torch.float16)


def serves(x: Tensor, B: Tensor) -> bool:
    """The kernels serve float32, bfloat16 and float16, heads of up to 128 channels, and up to 256 states."""
    return x.dtype in STORAGE and x.shape[3] <= 128 and B.shape[3] <= 256
