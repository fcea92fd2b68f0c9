import pytest

from adder.errors import UsageError
from adder.models.config import LanguageModelConfig
from adder.training.config import TrainingConfig
from adder.training.presets import DEFAULT_PRESET, PRESETS, find_preset


def test_dict_and_back():
    config = TrainingConfig(steps=7, precision="bfloat16", carry_state=False)
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_tokens_per_step_counts_accumulation():
    config = TrainingConfig(batch_size=3, accumulation=2, length=10)
    assert config.rows == 6
    assert config.tokens_per_step == 60


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("batch_size", True),
        ("length", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("minimum_learning_rate", 1.0),
        ("warmup", -1),
        ("weight_decay", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("clip", float("inf")),
        ("precision", "float16"),
        ("carry_state", 1),
        ("seed", -1),
        ("validation", 1.0),
        ("keep", 0),
        ("evaluation_tokens", 0),
    ],
)
def test_impossible_setting_is_named(name, value):
    with pytest.raises(UsageError, match=name):
        TrainingConfig(**{name: value})


def test_unknown_and_missing_settings_are_named():
    values = TrainingConfig().to_dict()
    with pytest.raises(UsageError, match="unknown training setting momentum"):
        TrainingConfig.from_dict({**values, "momentum": 0.9})
    del values["steps"]
    with pytest.raises(UsageError, match="setting steps is missing"):
        TrainingConfig.from_dict(values)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    preset = find_preset(name)
    TrainingConfig(**preset.training)
    LanguageModelConfig(vocab_size=256, **preset.model)


def test_sizes_of_the_presets():
    def parameters(name: str, vocab_size: int) -> int:
        config = LanguageModelConfig(vocab_size=vocab_size, **PRESETS[name].model)
        return config.parameter_count()

    assert 0.6e6 < parameters(DEFAULT_PRESET, 65) < 0.9e6
    assert 125e6 < parameters("base", 50_277) < 135e6


def test_unknown_preset_lists_the_names():
    with pytest.raises(UsageError, match="demo, tiny, small, medium, base"):
        find_preset("huge")
