"""Whether a training fits into memory, before any of it is taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from adder.errors import AdderError, UsageError
from adder.models.config import LanguageModelConfig
from adder.training.config import TrainingConfig

_BYTES_PER_PARAMETER = 16  # the weight, its gradient and two moments, float32


def check_memory(
    model: LanguageModelConfig, training: TrainingConfig, device: torch.device
) -> None:
    """UsageError where a training surely needs more memory than the device has free.

    The estimate is a lower bound: parameters, moments, and the activations that every
    implementation keeps for the backward pass. What passes here can still run out.
    """
    needed = required_bytes(model, training)
    free = _free_bytes(device)
    if free is not None and needed > free:
        parameters = model.parameter_count()
        raise UsageError(
            f"a model of {parameters:,} parameters and {training.batch_size} x {training.length} "
            f"tokens at once need at least {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are "
            f"free on {device}: make --d-model, --n-layer, --batch-size or --length smaller"
        )


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the errors of a full memory into one of ours that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU PyTorch raises a plain RuntimeError that only its words tell from others.
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (full or "can't allocate memory" in str(error)):
            raise
        raise AdderError(
            "out of memory: make --batch-size or --length smaller (--accumulation keeps the "
            "tokens of a step), or the model"
        ) from error


def required_bytes(model: LanguageModelConfig, training: TrainingConfig) -> int:
    """A lower bound of the bytes that a training holds at once."""
    size = 2 if training.precision == "bfloat16" else 4
    inner = model.expand * model.d_model
    per_token = model.n_layer * (2 * model.d_model + 5 * inner) * size + model.vocab_size * 4
    state = training.rows * model.n_layer * inner * (model.d_state + model.d_conv) * 4
    activations = training.batch_size * training.length * per_token
    return model.parameter_count() * _BYTES_PER_PARAMETER + activations + state


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device, None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_meminfo_available(), _cgroup_left()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _meminfo_available() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_left() -> int | None:
    """What a container's limit leaves (cgroup v2)."""
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    used = _read("/sys/fs/cgroup/memory.current").strip()
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
