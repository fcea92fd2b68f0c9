"""Whether a training fits into memory, before any of it is taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from adder.errors import AdderError, UsageError
from adder.models.classifier_config import SequenceClassifierConfig
from adder.models.config import LanguageModelConfig
from adder.training.config import Settings, TrainingConfig

AnyConfig = LanguageModelConfig | SequenceClassifierConfig

_BYTES_PER_PARAMETER = 16  # the weight, its gradient and two moments, float32


def check_memory(
    model: AnyConfig, training: Settings, device: torch.device, length: int | None = None
) -> None:
    """UsageError where a training surely needs more memory than the device has free.

    The estimate is a lower bound: parameters, moments, and the activations that every
    implementation keeps for the backward pass. What passes here can still run out.

    Args:
        length: steps of the longest row; not given, those that the training names.
    """
    steps = _length(training) if length is None else length
    needed = required_bytes(model, training, steps)
    free = _free_bytes(device)
    if free is not None and needed > free:
        parameters = model.parameter_count()
        text = isinstance(training, TrainingConfig)
        raise UsageError(
            f"a model of {parameters:,} parameters and {training.batch_size} x {steps} "
            f"{'tokens' if text else 'steps'} at once need at least {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free on {device}: make --d-model, --n-layer, "
            f"{'--batch-size or --length' if text else 'or --batch-size'} smaller"
        )


def free_memory() -> int | None:
    """Bytes of main memory that are free, None where the system does not tell."""
    return _free_bytes(torch.device("cpu"))


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
            "tokens of a step), or the model; for a text, --checkpoint-layers needs less"
        ) from error


def required_bytes(model: AnyConfig, training: Settings, length: int | None = None) -> int:
    """A lower bound of the bytes that a training holds at once; `length` as in `check_memory`."""
    size = 2 if training.precision == "bfloat16" else 4
    steps = _length(training) if length is None else length
    again = isinstance(training, TrainingConfig) and training.checkpoint_layers
    activations = training.batch_size * steps * _bytes_per_step(model, size, again)
    state = training.rows * _state_numbers(model) * 4 if training.carries else 0
    return model.parameter_count() * _BYTES_PER_PARAMETER + activations + state


def _length(training: Settings) -> int:
    return training.length if isinstance(training, TrainingConfig) else 1


def _bytes_per_step(model: AnyConfig, size: int, checkpoint_layers: bool) -> int:
    d = model.d_model
    if isinstance(model, LanguageModelConfig):
        of_layer = (2 * d + 5 * model.d_inner) * size
        if checkpoint_layers:  # of one layer at a time, and what entered the others
            return of_layer + (model.n_layer - 1) * d * 4 + model.vocab_size * 4
        return model.n_layer * of_layer + model.vocab_size * 4
    if model.layer == "mamba":
        return model.n_layer * (2 * d + 5 * d * (model.expand or 1)) * size
    # The input, its norm, what the convolution reads and writes, the activation, and GLU's two halves.
    return model.n_layer * d * (4 + 2 * (model.channels_out or 1)) * size


def _state_numbers(model: AnyConfig) -> int:
    if not isinstance(model, LanguageModelConfig):
        return 0  # a classifier carries none from step to step
    if model.layer in ("mamba", "mamba2"):
        return model.n_layer * model.d_inner * (model.d_state + model.d_conv)
    return model.n_layer * model.d_inner * (model.d_state or 1)


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
