"""What the options of `adder train` ask for: which task, which model, which settings."""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adder.errors import UsageError

if TYPE_CHECKING:
    import torch

    from adder.training.session import Session

MODELS = ("mamba", "mamba2", "s4", "s4d", "transformer", "lstm", "gru")
_OF_TEXT_ALONE = ("mamba2", "transformer", "lstm", "gru")
# What is a setting of the model; everything else is one of the training.
_OF_ANY_MODEL = frozenset({"d_model", "n_layer", "d_state", "d_conv", "expand", "dt_rank"})
_OF_CLASSIFIERS = frozenset(
    {
        "dropout",
        "norm",
        "prenorm",
        "pooling",
        "bidirectional",
        "dt_min",
        "dt_max",
        "ssm_learning_rate",
    }
    | {"n_ssm", "channels_out", "measure", "rank", "l_max", "init", "method"}
)
_OF_SOURCES = frozenset({"tokens", "test_files", "mix"})
_TEXT_ALONE = frozenset(
    {"vocabulary", "length", "carry_state", "evaluation_tokens", "checkpoint_layers"}
)
_NOT_OF_TASKS = frozenset({"vocabulary", "carry_state", "validation"})
_CLASSES_ALONE = _OF_CLASSIFIERS | _OF_SOURCES | {"buckets", "evaluation_sequences"}


def option(name: str) -> str:
    """The name of a parameter as it is typed."""
    return "SOURCE" if name == "source" else "--" + name.replace("_", "-")


def find_session(given: dict[str, Any], device_name: str) -> "AbstractContextManager[Session]":
    """The run that the options ask for: a new one, or one to continue."""
    from adder.data.labelled import labelled_form
    from adder.data.synthetic import SYNTHETIC
    from adder.training.device import choose_device
    from adder.training.session import CHANGEABLE, resume_run

    device = choose_device(device_name)
    resume = given.pop("resume", None)
    if "learning_rate" in given:
        given.setdefault("minimum_learning_rate", given["learning_rate"] / 10)
    if resume is not None:
        if refused := sorted(given.keys() - CHANGEABLE):
            raise UsageError(
                f"{option(refused[0])} cannot be given with --resume: the run has its own"
            )
        return resume_run(resume, changes=given, device=device)
    model = given.pop("model", None)
    if model is not None and model not in MODELS:
        raise UsageError(f"no model {model}: choose {', '.join(MODELS[:-1])} or {MODELS[-1]}")
    if given.get("source") in SYNTHETIC:
        return _synthetic(given, model or "mamba", device)
    _refuse(given, frozenset({"task_option"}), f"is for a task: {', '.join(SYNTHETIC)}")
    form = labelled_form(given.get("source"))
    nothing = model in ("s4", "s4d") and "source" not in given
    if form is not None or nothing or given.keys() & _OF_SOURCES:
        if model in _OF_TEXT_ALONE:
            raise UsageError(f"--model {model} is for a text, and this is for labelled sequences")
        return _classifier(given, model, form, device)
    return _language_model(given, model or "mamba", device)


def _language_model(
    given: dict[str, Any], layer: str, device: "torch.device"
) -> "AbstractContextManager[Session]":
    from adder.training.config import TrainingConfig
    from adder.training.device import choose_precision
    from adder.training.presets import DEFAULT_PRESET, find_preset
    from adder.training.session import start_run

    _refuse(given, _CLASSES_ALONE, "is for labelled sequences, and this is a text")
    source, name = given.pop("source", None), given.pop("preset", DEFAULT_PRESET)
    vocabulary = given.pop("vocabulary", "characters")
    output = given.pop("output", None)
    chosen = find_preset(name)
    model, training = _settings(given, _sizes(chosen.model, layer), chosen.training)
    _fit_heads(model)
    if layer == "transformer":
        training.setdefault("carry_state", False)
    if output is None:
        stem = "stdin" if source == "-" else Path(source or "python-docs").resolve().stem
        output = Path("runs") / f"{stem}-{name}"
    training["precision"] = choose_precision(
        training.get("precision", "auto"), device, model["d_model"]
    )
    return start_run(
        output,
        source=source,
        vocabulary=vocabulary,
        model=model,
        training=TrainingConfig(**training),
        device=device,
    )


def _synthetic(
    given: dict[str, Any], layer: str, device: "torch.device"
) -> "AbstractContextManager[Session]":
    from adder.data.synthetic import make_synthetic
    from adder.training.config import TrainingConfig
    from adder.training.device import choose_precision
    from adder.training.presets import find_synthetic_preset
    from adder.training.session import start_synthetic

    task = given.pop("source")
    _refuse(given, _CLASSES_ALONE, f"is for labelled sequences, and {task} is a task")
    _refuse(given, _NOT_OF_TASKS, f"is for a text, and {task} is a task")
    name, output = given.pop("preset", "scaled"), given.pop("output", None)
    chosen = find_synthetic_preset(task, name)
    options = chosen.source | _task_options(given.pop("task_option", []))
    if "length" in given:
        options["length"] = given.pop("length")
    source = make_synthetic(task, **options)
    model, training = _settings(given, _sizes(chosen.model, layer), chosen.training)
    _fit_heads(model)
    training |= {"length": source.length, "carry_state": False, "validation": 0.0}
    training["precision"] = choose_precision(
        training.get("precision", "auto"), device, model["d_model"]
    )
    return start_synthetic(
        output or Path("runs") / f"{task}-{layer}",
        source=source,
        model=model,
        training=TrainingConfig(**training),
        device=device,
    )


def _task_options(given: list[str]) -> dict[str, int]:
    """Read NAME=NUMBER, as often as given."""
    options = {}
    for each in given:
        name, _, value = each.partition("=")
        if not name.isidentifier() or not value.isdecimal():
            raise UsageError(f"--task-option must be NAME=NUMBER, such as tokens=8, got {each}")
        options[name] = int(value)
    return options


def _sizes(preset: dict[str, Any], layer: str) -> dict[str, Any]:
    """A preset's sizes for a layer: what it says of Mamba alone is of no other."""
    if layer == "mamba":
        return dict(preset)
    return {key: preset[key] for key in ("d_model", "n_layer") if key in preset} | {"layer": layer}


def _fit_heads(model: dict[str, Any]) -> None:
    """Give Mamba-2 heads that divide its width."""
    if model.get("layer") == "mamba2":
        model["headdim"] = math.gcd(64, model.get("expand", 2) * model["d_model"])


def _classifier(
    given: dict[str, Any], layer: str | None, form: str | None, device: "torch.device"
) -> "AbstractContextManager[Session]":
    from adder.data.labelled import FORMS, LabelledOptions
    from adder.training.config import ClassificationConfig
    from adder.training.device import choose_precision
    from adder.training.presets import PRESET_OF_FORM, find_classifier_preset
    from adder.training.session import start_classification

    source = given.pop("source", None)
    if source is None or source == "-":
        raise UsageError(f"a classifier needs a SOURCE of labelled sequences: give {FORMS}")
    _refuse(given, _TEXT_ALONE, f"is for a text, and {source} holds labelled sequences")
    name = given.pop("preset", PRESET_OF_FORM.get(form or "", "series"))
    chosen = find_classifier_preset(name)
    output = given.pop("output", None)
    options = LabelledOptions(**{key: given.pop(key) for key in _OF_SOURCES & given.keys()})
    model, training = _settings(given, chosen.model, chosen.training)
    model["layer"] = layer or "s4d"
    precision = training.get("precision", "auto")
    if precision == "auto" and model["layer"] != "mamba":
        precision = "float32"  # Fourier transforms have no shorter type
    training["precision"] = choose_precision(precision, device, model["d_model"])
    if output is None:
        output = Path("runs") / f"{Path(source).resolve().stem}-{model['layer']}"
    return start_classification(
        output,
        source=source,
        options=options,
        model=model,
        training=ClassificationConfig(**training),
        device=device,
    )


def _refuse(given: dict[str, Any], names: frozenset[str], why: str) -> None:
    if refused := sorted(given.keys() & names):
        raise UsageError(f"{option(refused[0])} {why}")


def _settings(
    given: dict[str, Any], of_model: dict[str, Any], of_training: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of the model and of the training: the preset's, then the options'."""
    model, training = dict(of_model), dict(of_training)
    for key, value in given.items():
        (model if key in _OF_ANY_MODEL | _OF_CLASSIFIERS else training)[key] = value
    if "dt_rank" in given and given["dt_rank"] != "auto":
        if not given["dt_rank"].isdecimal():
            raise UsageError(f'--dt-rank must be a whole number or "auto", got {given["dt_rank"]}')
        model["dt_rank"] = int(given["dt_rank"])
    if "steps" in given and "warmup" not in given:
        training["warmup"] = min(training.get("warmup", 100), given["steps"] // 10)
    return model, training
