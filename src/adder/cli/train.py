"""`adder train`: a text or labelled sequences in, a run folder out."""

from pathlib import Path
from typing import Annotated

import typer

from adder.cli.train_settings import find_session

EXIT_CODES = {"interrupted": 130, "terminated": 143}


def train(
    source: Annotated[
        str | None,
        typer.Argument(
            help='A text file, a folder, "-" for standard input, "python-sources"; or nothing '
            "for the default text, the prose of Python's manual. A task: copying, selective-copying, "
            "induction-heads, mqar, parity, listops. Sequences with labels: a folder "
            "of idx files as MNIST's, a folder or a .tar of wav files by label, an .npz with "
            "x_train and y_train.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run folder to make [below runs]."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Continue this run, or this checkpoint folder of a run."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sizes that go together: demo, tiny, small, medium or base [tiny] for a text; "
            "pixels, audio or series [by the files] for labelled sequences; scaled or paper [scaled] "
            "for a task."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="mamba, mamba2, s4, s4d, transformer, lstm or gru for a text; mamba, s4 or s4d for "
            "labelled sequences [mamba for a text, s4d otherwise]."
        ),
    ] = None,
    task_option: Annotated[
        list[str] | None,
        typer.Option(
            help="What a task is told, as NAME=NUMBER: tokens, symbols, pairs, keys, values, "
            "least, depth, arguments; may be given several times."
        ),
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
    dropout: Annotated[float | None, typer.Option(help="In every block.")] = None,
    norm: Annotated[str | None, typer.Option(help="layer or rms [layer].")] = None,
    prenorm: Annotated[
        bool | None,
        typer.Option(
            "--prenorm/--postnorm",
            help="Norms before the layers, or after them [prenorm].",
            show_default=False,
        ),
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="What is classified: mean or last step [mean].")
    ] = None,
    bidirectional: Annotated[
        bool | None,
        typer.Option(
            "--bidirectional", help="Read from both ends; no recurrence then.", show_default=False
        ),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="Of S4: legs, legt, lagt, fourier, ... [legs].")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of S4 [the measure's].")] = None,
    init: Annotated[
        str | None, typer.Option(help="Of S4D: legs, inv, lin, inv2, ... [legs].")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Of S4D: zoh, bilinear or dss [zoh].")] = None,
    n_ssm: Annotated[
        int | None, typer.Option(help="Different A and B of S4 and S4D [one a channel].")
    ] = None,
    channels_out: Annotated[
        int | None, typer.Option(help="Kernels of a channel of S4 and S4D [1].")
    ] = None,
    l_max: Annotated[
        int | None, typer.Option(help="Taps of a kernel of S4 and S4D [no limit].")
    ] = None,
    dt_min: Annotated[float | None, typer.Option(help="Least initial step size [0.001].")] = None,
    dt_max: Annotated[float | None, typer.Option(help="Largest one [0.1].")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    ssm_learning_rate: Annotated[
        float | None, typer.Option(help="Of A, B and the step sizes of S4 and S4D [0.001].")
    ] = None,
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
    checkpoint_layers: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint-layers/--no-checkpoint-layers",
            help="Run each layer again in the backward pass: less memory, more time, same numbers.",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(help="The part not trained on: a text's last, or drawn by the seed [0.1]."),
    ] = None,
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    evaluation_tokens: Annotated[
        int | None, typer.Option(help="Tokens that an evaluation reads.")
    ] = None,
    evaluation_sequences: Annotated[
        int | None, typer.Option(help="Sequences that an evaluation reads.")
    ] = None,
    test_files: Annotated[
        str | None,
        typer.Option(
            help='Which wav files are for testing alone: a pattern such as "*_[0-4].wav", or '
            "@FILE, a list of paths."
        ),
    ] = None,
    tokens: Annotated[
        bool | None,
        typer.Option("--tokens", help="Pixels or numbers are token ids.", show_default=False),
    ] = None,
    mix: Annotated[
        bool | None,
        typer.Option("--mix", help="Average the channels of wav files.", show_default=False),
    ] = None,
    buckets: Annotated[
        int | None,
        typer.Option(help="Batches drawn together and sorted by length, for less padding."),
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
    """Train a language model on a text or a task, or a classifier on labelled sequences.

    Ctrl-C saves the run and says how to continue it; --resume continues it as if it had never
    stopped. Not given, a size is the preset's. The test part of labelled sequences is read once,
    at the end.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("time_limit", "device", "as_json"):
        given.pop(name, None)
    from adder.cli.train_report import opening, report
    from adder.training.loop import fit
    from adder.training.presets import PRESETS
    from adder.training.progress import make_display

    if time_limit is None and preset in PRESETS:
        time_limit = PRESETS[preset].time_limit

    with find_session(given, device) as session:
        display = make_display(session.training.steps)
        display.say(opening(session))
        outcome = fit(session, display, time_limit)
        report(session, outcome, as_json)
    if outcome.reason in EXIT_CODES:
        raise typer.Exit(EXIT_CODES[outcome.reason])
