"""How many threads a command uses that takes one step at a time."""

SMALL_MODEL = 10_000_000


def use_threads(threads: int | None, parameters: int) -> None:
    """One step of a small model is too little work to share: waiting for a second thread costs
    more than it brings, and 20 times more where other programs keep the cores busy."""
    import torch

    if threads is None and parameters < SMALL_MODEL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
