import pytest
import torch

from adder.errors import AdderError, UsageError
from adder.models.config import LanguageModelConfig
from adder.training import memory
from adder.training.config import TrainingConfig
from adder.training.memory import check_memory, memory_errors, required_bytes

CPU = torch.device("cpu")
SMALL = LanguageModelConfig(vocab_size=100, d_model=16, n_layer=2)


def test_small_training_fits():
    check_memory(SMALL, TrainingConfig(), CPU)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ({"d_model": 100_000}, {}),
        ({"n_layer": 10_000_000}, {}),
        ({}, {"batch_size": 10**9}),
        ({}, {"length": 10**9}),
    ],
)
def test_impossible_sizes_are_refused(model, training):
    config = LanguageModelConfig(**{"vocab_size": 100, "d_model": 16, **model})
    with pytest.raises(UsageError, match="GiB are free on cpu: make --d-model"):
        check_memory(config, TrainingConfig(**training), CPU)


def test_every_size_counts():
    base = required_bytes(SMALL, TrainingConfig())
    assert base > 16 * SMALL.parameter_count()
    assert required_bytes(SMALL, TrainingConfig(batch_size=24)) > base
    assert required_bytes(SMALL, TrainingConfig(accumulation=2)) > base
    assert required_bytes(SMALL, TrainingConfig(precision="bfloat16")) < base


def test_layers_that_run_again_need_less_memory_and_deeper_models_gain_more():
    def saved(n_layer):
        model = LanguageModelConfig(vocab_size=100, d_model=16, n_layer=n_layer)
        plain, again = (
            required_bytes(model, TrainingConfig(checkpoint_layers=again))
            for again in (False, True)
        )
        return plain - again

    assert saved(1) == 0
    assert 0 < saved(2) < saved(8)


def test_a_system_that_does_not_tell_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "_read", lambda _path: "")
    check_memory(SMALL, TrainingConfig(batch_size=10**9), CPU)


def test_limit_of_a_container_counts(monkeypatch):
    files = {
        "/proc/meminfo": "MemAvailable:   1000000 kB\n",
        "/sys/fs/cgroup/memory.max": "2000000\n",
        "/sys/fs/cgroup/memory.current": "1500000\n",
    }
    monkeypatch.setattr(memory, "_read", files.__getitem__)
    assert memory._free_bytes(CPU) == 500_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory._free_bytes(CPU) == 1_024_000_000


def test_only_errors_of_memory_are_translated():
    with pytest.raises(AdderError, match="out of memory"), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shape"), memory_errors():
        raise RuntimeError("shape")
