"""`adder train`: a text in, a run folder out."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adder.errors import UsageError

if TYPE_CHECKING:
    from adder.training.loop import Outcome
    from adder.training.session import Session

EXIT_CODES = {"interrupted": 130, "terminated": 143}
_MODEL_SETTINGS = ("d_model", "n_layer", "d_state", "d_conv", "expand", "dt_rank")


def train(
    source: Annotated[
        str | None,
        typer.Argument(
            help='A text file, a folder, "-" for standard input, "python-sources"; or nothing '
            "for the default text, the prose of Python's manual.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run folder to make [runs/SOURCE-PRESET]."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue this run, or this checkpoint folder of a run."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Sizes that go together: demo, tiny, small, medium or base [tiny]."),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(help="characters, bytes, or a tokenizers JSON file [characters]."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows read at once.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a row in one step.")] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Batches whose gradients make one update.")
    ] = None,
    d_model: Annotated[int | None, typer.Option(help="Width of the model.")] = None,
    n_layer: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    d_state: Annotated[int | None, typer.Option(help="State size of a channel.")] = None,
    d_conv: Annotated[int | None, typer.Option(help="Width of the short convolution.")] = None,
    expand: Annotated[int | None, typer.Option(help="Inner width over d_model.")] = None,
    dt_rank: Annotated[
        str | None, typer.Option(help='Rank of the step size\'s projection, or "auto".')
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    minimum_learning_rate: Annotated[
        float | None, typer.Option(help="At the last step [a tenth of the highest].")
    ] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Steps to reach the highest [a tenth, at most the preset's].")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    beta1: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    beta2: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm; 0 for any.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, or bfloat16 (autocast) [auto].")
    ] = None,
    carry_state: Annotated[
        bool | None,
        typer.Option(
            "--carry-state/--no-carry-state",
            help="Rows continue from step to step, or start at random places [carry-state].",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="The last part of the text, not trained on [0.1].")
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    evaluation_tokens: Annotated[
        int | None, typer.Option(help="Tokens that an evaluation reads.")
    ] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    keep: Annotated[int | None, typer.Option(help="Checkpoints that stay [2].")] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Stop and save after so many seconds.", min=0.0)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and data order [0].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Train a Mamba language model on a text.

    Ctrl-C saves the run and says how to continue it; --resume continues it as if it had never
    stopped. Not given, a size is the preset's.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("time_limit", "device", "as_json"):
        given.pop(name, None)
    from adder.training.loop import fit
    from adder.training.presets import find_preset
    from adder.training.progress import make_display

    if time_limit is None and preset is not None:
        time_limit = find_preset(preset).time_limit

    with _session(given, device) as session:
        display = make_display(session.training.steps)
        display.say(_opening(session))
        outcome = fit(session, display, time_limit)
        _report(session, outcome, as_json)
    if outcome.reason in EXIT_CODES:
        raise typer.Exit(EXIT_CODES[outcome.reason])


def _session(given: dict[str, Any], device_name: str) -> "AbstractContextManager[Session]":
    """The run that the options ask for: a new one, or one to continue."""
    from adder.training.device import choose_device
    from adder.training.session import CHANGEABLE, resume_run, start_run

    device = choose_device(device_name)
    resume = given.pop("resume", None)
    if "learning_rate" in given:
        given.setdefault("minimum_learning_rate", given["learning_rate"] / 10)
    if resume is not None:
        if refused := sorted(given.keys() - CHANGEABLE):
            option = "SOURCE" if refused[0] == "source" else "--" + refused[0].replace("_", "-")
            raise UsageError(f"{option} cannot be given with --resume: the run has its own")
        return resume_run(resume, changes=given, device=device)
    source, preset = given.pop("source", None), given.pop("preset", None)
    vocabulary = given.pop("vocabulary", "characters")
    output = given.pop("output", None)
    model, training, preset_name = _settings(given, preset)
    if output is None:
        name = "stdin" if source == "-" else Path(source or "python-docs").resolve().stem
        output = Path("runs") / f"{name}-{preset_name}"
    from adder.training.config import TrainingConfig
    from adder.training.device import choose_precision

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


def _settings(
    given: dict[str, Any], preset: str | None
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Keyword arguments of the model and of the training: the preset's, then the options'."""
    from adder.training.presets import DEFAULT_PRESET, find_preset

    name = preset or DEFAULT_PRESET
    chosen = find_preset(name)
    model, training = dict(chosen.model), dict(chosen.training)
    for key, value in given.items():
        (model if key in _MODEL_SETTINGS else training)[key] = value
    if "dt_rank" in given and given["dt_rank"] != "auto":
        if not given["dt_rank"].isdecimal():
            raise UsageError(f'--dt-rank must be a whole number or "auto", got {given["dt_rank"]}')
        model["dt_rank"] = int(given["dt_rank"])
    if "steps" in given and "warmup" not in given:
        training["warmup"] = min(training.get("warmup", 100), given["steps"] // 10)
    return model, training, name


def _opening(session: "Session") -> str:
    config, training = session.config, session.training
    start = f"resuming {session.path} at step {session.step}" if session.step else "training"
    return (
        f"{start}: {config.model.parameter_count():,} parameters on {config.source['name']} "
        f"({session.task.summary()}), {training.precision} on {session.learner.device}, "
        f"{training.steps} steps of {session.task.step_summary()}; in {session.path}"
    )


def _report(session: "Session", outcome: "Outcome", as_json: bool) -> None:
    from adder.training.files import shell_word

    path = shell_word(session.path)
    resume = f"adder train --resume {path}"
    if as_json:
        values = {"run": str(session.path), **outcome.to_dict()}
        values["steps"] = session.training.steps
        values["parameters"] = session.config.model.parameter_count()
        values["precision"] = session.training.precision
        values["resume"] = None if outcome.reason == "finished" else resume
        print(json.dumps(values))
        return
    print(
        f"{outcome.reason} at step {outcome.step} after {outcome.seconds:.0f} s: {_loss(outcome)}"
    )
    if outcome.reason == "finished":
        print(f"the run is in {session.path}; let it write: adder generate {path} PROMPT")
    else:
        print(f"saved; continue with: {resume}")


def _loss(outcome: "Outcome") -> str:
    text = f"loss {outcome.loss:.4f}"
    figures = outcome.figures
    if "validation_bits_per_byte" in figures:
        text += (
            f", validation loss {figures['validation_loss']:.4f} nats per token, "
            f"{figures['validation_bits_per_byte']:.4f} bits per byte "
            f"over {figures['tokens_evaluated']:,} tokens"
        )
    return text
