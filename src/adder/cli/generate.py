"""`adder generate`: let a trained model write."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adder.cli.threads import use_threads
from adder.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


def generate(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder, one of its checkpoints, or the folder of a model."
        ),
    ],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT",
            help="The text to continue; - reads it from standard input.",
            show_default=False,
        ),
    ] = "",
    max_tokens: Annotated[int, typer.Option(min=0, help="How many tokens to write at most.")] = 500,
    temperature: Annotated[
        float, typer.Option(help="Below 1 safer, above 1 wilder; 0 takes the likeliest token.")
    ] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K most probable tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that add up to P.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Leave out tokens below P times the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens seen before less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given several times.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Continue from this file; the prompt may be left out.")
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(help="Write where the text ends to this file, to continue it.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint's name, such as step-00000200 [the newest].")
    ] = None,
    echo: Annotated[bool, typer.Option(help="Write the prompt before its continuation.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads [1 for a small model, else PyTorch's default]."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when the text is done.")
    ] = False,
) -> None:
    """Continue a text, and print it as it is made.

    With --state the text continues where --save-state left it, without being read again. An
    interrupt (Ctrl-C) keeps the text printed so far and writes no state.
    """
    text = _read_prompt(prompt)
    if not text and state is None:
        raise UsageError("the prompt is empty: give at least one character, or a text with --state")
    if save_state is not None:
        _check_place(save_state)

    from adder.generation import Stream
    from adder.training.device import choose_device
    from adder.training.opened import open_model

    target = choose_device(device)
    opened = open_model(run, checkpoint)
    model, vocabulary = opened.reader()
    model = model.to(target)
    use_threads(threads, model.config.parameter_count())
    stream = Stream(model, vocabulary) if state is None else Stream.load(state, model, vocabulary)
    stream.feed(text)
    start, started = stream.position, time.perf_counter()
    pieces = stream.generate(
        max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
    )
    if as_json:
        written = "".join(str(piece) for piece in pieces)
    else:
        _print_as_made(text if echo else "", pieces)
    seconds = time.perf_counter() - started
    if save_state is not None:
        stream.save(save_state)
    if as_json:
        facts = {
            "prompt": text,
            "text": written,
            "tokens": stream.position - start,
            "position": stream.position,
            "seconds": round(seconds, 3),
            "run": str(run),
            "step": opened.step,
        }
        print(json.dumps(facts, ensure_ascii=False))


def _check_place(save_state: Path) -> None:
    """Refuse what could not be written before the text is, rather than after it."""
    if not save_state.parent.is_dir():
        raise UsageError(f"--save-state {save_state}: there is no folder {save_state.parent}")
    if save_state.exists() and not save_state.is_file():
        raise UsageError(f"--save-state {save_state}: is a folder or a device")
    if not os.access(save_state.parent, os.W_OK):
        raise UsageError(f"--save-state {save_state}: {save_state.parent} cannot be written to")


def _read_prompt(prompt: str) -> str:
    if prompt == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed: there is no prompt to read")
        try:
            return sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not UTF-8 text: byte {error.start} is "
                f"0x{error.object[error.start]:02x}"
            ) from None
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the prompt is not UTF-8 text") from None
    return prompt


def _print_as_made(prompt: str, pieces: "Iterator[str] | Iterator[int]") -> None:
    """Print piece by piece.

    A terminal gets a line end after the text; a file or a pipe gets the text and nothing else, so
    that the outputs of several commands can be joined.
    """
    last = "\n" if sys.stdout is not None and sys.stdout.isatty() else ""
    try:
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(end=last, flush=True)
        raise
    print(end=last, flush=True)
