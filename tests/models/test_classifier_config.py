"""The config of a classifier: exact counts, defaults of its layer, and what is refused by name."""

import pytest

from adder import SequenceClassifier, SequenceClassifierConfig, UsageError

SIZES = {"classes": 3, "d_input": 2, "d_model": 8, "n_layer": 2}


@pytest.mark.parametrize(
    "settings",
    [
        {"layer": "s4"},
        {"layer": "s4", "measure": "legt", "n_ssm": 1, "d_state": 6},
        {"layer": "s4", "measure": "hippo", "rank": 3, "n_ssm": 4, "d_state": 6},
        {"layer": "s4", "measure": "dplr-lin", "bidirectional": True, "d_state": 6},
        {"layer": "s4d", "init": "inv", "channels_out": 3, "glu": False},
        {"layer": "s4d", "bidirectional": True, "norm": "rms", "prenorm": False},
        {"layer": "mamba", "dt_rank": 3},
        {"layer": "mamba", "bidirectional": True, "final_norm": False},
        {"d_input": None, "vocab_size": 7},
    ],
)
def test_parameter_count_is_exact(settings):
    config = SequenceClassifierConfig(**{**SIZES, **settings})
    made = sum(each.numel() for each in SequenceClassifier(config).parameters())
    assert config.parameter_count() == made


def test_dict_and_back():
    config = SequenceClassifierConfig(
        **SIZES, labels=("x", "y", "z"), input_mean=(0.1, 1 / 3), input_std=(1.0, 2.0)
    )
    assert SequenceClassifierConfig.from_dict(config.to_dict()) == config


def test_settings_not_given_are_those_of_the_layer():
    assert SequenceClassifierConfig(**SIZES).d_state == 64
    mamba = SequenceClassifierConfig(**SIZES, layer="mamba")
    assert (mamba.d_state, mamba.d_conv, mamba.measure) == (16, 4, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "gru"}, "layer is 'gru', expected one of s4, s4d, mamba"),
        ({"classes": 1}, "classes is 1, expected at least 2"),
        ({"classes": 2.5}, "classes is 2.5"),
        ({"d_model": 0}, "d_model is 0"),
        ({"d_model": 10**9}, "more than any machine holds"),
        ({"d_state": 7}, "d_state is 7, expected an even number"),
        ({"d_state": 0}, "d_state is 0"),
        ({"layer": "s4", "measure": "legt", "rank": 1}, "rank is 1, but legt needs at least 2"),
        ({"layer": "s4", "measure": "chebyshev"}, "chebyshev"),
        ({"layer": "s4", "measure": "dplr-odd"}, "odd"),
        ({"init": "odd"}, "odd"),
        ({"measure": "legs"}, "measure is a setting of s4, and the layer is s4d"),
        ({"layer": "mamba", "n_ssm": 1}, "n_ssm is a setting of s4 or s4d, and the layer is mamba"),
        ({"d_conv": 4}, "d_conv is a setting of mamba"),
        ({"n_ssm": 3}, "n_ssm is 3, expected a divisor of d_model 8"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "batch"}, "norm is 'batch', expected one of layer, rms"),
        ({"pooling": "max"}, "pooling is 'max', expected one of mean, last"),
        ({"prenorm": 1}, "prenorm is 1, expected true or false"),
        ({"dt_min": 0.2}, "dt_min 0.2 is above dt_max"),
        ({"vocab_size": 3}, "either vocab_size, for tokens, or d_input"),
        ({"d_input": None}, "either vocab_size, for tokens, or d_input"),
        ({"input_mean": (1.0,)}, "input_mean has 1 numbers, expected one for each of 2"),
        ({"input_std": (1.0, 0.0)}, "input_std is 0.0, expected a positive number"),
        ({"labels": ("a", "b")}, "labels names 2 classes, and classes is 3"),
        ({"labels": ("a", "b", "b")}, "labels names 2 classes"),
        ({"sampling_rate": -1.0}, "sampling_rate"),
        ({"glu": "yes"}, "glu"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        SequenceClassifierConfig(**{**SIZES, **settings})


def test_unknown_and_missing_keys_are_named():
    values = SequenceClassifierConfig(**SIZES).to_dict()
    with pytest.raises(UsageError, match="colour is not a key of a sequence classifier"):
        SequenceClassifierConfig.from_dict({**values, "colour": 1})
    del values["classes"]
    with pytest.raises(UsageError, match="classes is missing"):
        SequenceClassifierConfig.from_dict(values)
