"""`adder classify`: what a classifier makes of a stream, while it comes."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adder.cli.threads import use_threads
from adder.errors import UsageError

if TYPE_CHECKING:
    from adder.data.stream import Chunks
    from adder.generation.live import LiveClassifier
    from adder.models import SequenceClassifierConfig

_SAMPLES_AT_ONCE = 64


def classify(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The run of a classifier, one of its checkpoints, or the folder of a model.",
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A wav file; or a file of numbers, one step a line; - reads standard input.",
        ),
    ],
    raw: Annotated[
        bool,
        typer.Option("--raw", help="FILE is raw samples of 16 bits, little-endian, one channel."),
    ] = False,
    every: Annotated[
        int | None,
        typer.Option(help="Print after every so many steps [when the class changes].", min=1),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Steps to read at once; the result does not depend on it [1 for numbers, 64 for "
            "samples].",
            min=1,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            help="How many of the training's steps pass in one of these, or auto: its sampling "
            "rate over that of FILE [1]."
        ),
    ] = None,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Of FILE, in Hz, where it does not say [the training's].")
    ] = None,
    mix: Annotated[bool, typer.Option("--mix", help="Average the channels of a wav file.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="A checkpoint's name, such as step-00000200 [the newest].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU threads [1 for a small model, else PyTorch's default]."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object when the stream is done.")
    ] = False,
) -> None:
    """Classify a sequence step by step, and print the class while it comes.

    The last line is the class of the whole and its probability. An interrupt (Ctrl-C) ends the
    stream: what came until then is classified.
    """
    from adder.generation.live import LiveClassifier
    from adder.training.device import choose_device
    from adder.training.opened import open_model

    target = choose_device(device)
    model = open_model(run, checkpoint).classifier().to(target)
    use_threads(threads, model.config.parameter_count())
    with ExitStack() as files:
        chunks, speed = _open(
            source, model.config, raw, mix, rate, sampling_rate, chunk, every, files
        )
        live, seen = LiveClassifier(model, speed), []
        try:
            for piece in chunks:
                last, place = (live.label, live.position) if live.position else ("", 0)
                live.feed(piece)
                if live.position // every > place // every if every else live.label != last:
                    seen.append({"step": live.position, **_now(live)})
                    if not as_json:
                        print(_line(live, model.config, speed), flush=True)
            if not live.position:
                raise UsageError(f"{'standard input' if source == '-' else source} is empty")
            ended = True
        except KeyboardInterrupt:
            # Often the stream ends with it: Ctrl-C in a pipe stops whoever writes it too.
            ended = False
    if live.position:
        _print_end(live, model.config, speed, seen, as_json, run)
    if not ended:
        raise KeyboardInterrupt


def _open(
    source: str,
    config: "SequenceClassifierConfig",
    raw: bool,
    mix: bool,
    asked: str | None,
    hertz: float | None,
    chunk: int | None,
    every: int | None,
    files: ExitStack,
) -> "tuple[Chunks, float]":
    """The chunks of a stream, and the rate at which the model reads them."""
    from adder.data.budget import readable
    from adder.data.stream import in_chunks, read_numbers, read_raw, read_wav_file
    from adder.training.opened import choose_rate

    name = "standard input" if source == "-" else source
    wav = source.lower().endswith(".wav") and not raw
    if (wav or raw) and config.d_input != 1:
        reads = "tokens" if config.tokens else f"{config.d_input} channels"
        raise UsageError(f"{name} holds samples of one channel, and the model reads {reads}")
    if mix and not wav:
        raise UsageError("--mix is for wav files")
    if hertz is not None and (wav or not hertz > 0):
        raise UsageError(
            f"{name} says its sampling rate itself: leave --sampling-rate out"
            if wav
            else f"--sampling-rate must be a positive number, got {hertz:g}"
        )
    size = chunk or _chunk(_SAMPLES_AT_ONCE if wav or raw else 1, every)
    if wav:
        samples, rate = read_wav_file(Path(source), mix)
        return in_chunks(samples, size), choose_rate(asked, config.sampling_rate, rate, name)
    if hertz is None and asked is None:
        hertz = (
            config.sampling_rate
        )  # numbers have none of their own: they are taken for the training's
    speed = choose_rate(asked, config.sampling_rate, hertz, name)
    if source == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed: there is nothing to read")
        file = sys.stdin.buffer
    else:
        with readable(source):
            file = files.enter_context(Path(source).open("rb"))  # noqa: SIM115
    if raw:
        return read_raw(file, size), speed
    return read_numbers(file, config.d_input or 1, config.vocab_size, size, name), speed


def _chunk(most: int, every: int | None) -> int:
    """The largest chunk of at most `most` steps that ends where a line is due."""
    if every is None:
        return most
    return max(size for size in range(1, most + 1) if every % size == 0)


def _now(live: "LiveClassifier") -> dict[str, Any]:
    return {"class": live.label, "probability": live.probability}


def _line(live: "LiveClassifier", config: "SequenceClassifierConfig", rate: float) -> str:
    return f"{_place(live, config, rate)}: {live.label} ({live.probability:.1%})"


def _place(live: "LiveClassifier", config: "SequenceClassifierConfig", rate: float) -> str:
    step = f"step {live.position:,}"
    if config.sampling_rate is None:
        return step
    return f"{step}, {live.position * rate / config.sampling_rate:.3f} s"


def _print_end(
    live: "LiveClassifier",
    config: "SequenceClassifierConfig",
    rate: float,
    seen: list[dict[str, Any]],
    as_json: bool,
    run: Path,
) -> None:
    if not as_json:
        print(f"{live.label}, probability {live.probability:.4f}, after {live.position:,} steps")
        return
    names = config.labels or tuple(map(str, range(config.classes)))
    facts = {
        **{"run": str(run), "steps": live.position, "rate": rate, **_now(live)},
        "probabilities": dict(zip(names, live.probabilities.tolist(), strict=True)),
        "seen": seen,
    }
    print(json.dumps(facts, ensure_ascii=False))
