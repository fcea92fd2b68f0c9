"""A kernel that does nothing but exponentials, to see how many a GPU computes in a second."""

import torch
import triton
import triton.language as tl

BLOCK, PROGRAMS_OF_EACH, ROUNDS = 1024, 16, 2048


@triton.jit
def exponentials_kernel(out, rounds, BLOCK: tl.constexpr):
    """x <- 2^-x, in eight independent chains of each thread."""
    x = tl.arange(0, BLOCK).to(tl.float32) / BLOCK
    for _ in range(rounds):
        x = tl.exp2(-x)
    tl.store(out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), x)


def prepare(device, rounds=ROUNDS):
    """Return a call that computes exponentials on every multiprocessor, and how many."""
    programs = torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_OF_EACH
    out = torch.empty(programs * BLOCK, device=device)
    call = lambda: exponentials_kernel[(programs,)](out, rounds, BLOCK=BLOCK, num_warps=4)  # noqa: E731
    return call, programs * BLOCK * rounds
