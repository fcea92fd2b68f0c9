"""`adder bench`: how fast adder is on this machine, beside its limits and beside other libraries; here `cpu`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adder.cli.bench_gpu import gpu
from adder.cli.bench_run import carry_out, check_files
from adder.cli.checks import check_known
from adder.errors import UsageError

if TYPE_CHECKING:
    from adder.benchmark.plan import Plan

PARTS = ("adder", "limits", "operators", "prefill", "decode", "train", "peers")
QUICK_LIMIT = 2.0


def cpu(
    quick: Annotated[
        bool, typer.Option("--quick", help="A tiny model and few sizes, all threads: a minute.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="limits, operators, prefill, decode, train; adder leaves the peers out, peers "
            "leaves adder out. May be given several times [everything]."
        ),
    ] = None,
    model_size: Annotated[str | None, typer.Option(help="130m or tiny [130m].")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, bfloat16, int8, int4; may be given several times [all of them]."
        ),
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Tokens to read; may be given several times [64 512 2048 8192 16384 65536]."
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="May be given several times [1 and as many as there are cores]."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Turns of each measurement [3].")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(min=0.1, help="Leave out what takes longer than so many seconds [60]."),
    ] = None,
    peer_python: Annotated[
        Path | None,
        typer.Option(help="The Python that has transformers and mambapy [this one]."),
    ] = None,
    llama_bench: Annotated[Path | None, typer.Option(help="llama.cpp's llama-bench.")] = None,
    gguf: Annotated[
        str | None, typer.Option(help="Models for llama-bench, with commas between them.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures; - prints them instead."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Time and memory against length.")
    ] = None,
) -> None:
    """Measure this machine, the operators, and a Mamba of random weights beside other libraries.

    Limits come first: the speed of memory and of matrix products. Then tokens per second of
    reading (prefill), writing (decode) and training, each in a process of its own, in rounds in
    which all take turns. About 12 minutes on two cores. Ctrl-C keeps what was measured.
    """
    check_files(json_file, figure)
    for option, path in (("--peer-python", peer_python), ("--llama-bench", llama_bench)):
        if path is not None and not (path.is_file() and os.access(path, os.X_OK)):
            raise UsageError(f"{option} {path}: there is no such program")
    if (llama_bench is None) != (gguf is None):
        raise UsageError("--llama-bench and --gguf go together: a program and its models")
    ggufs = tuple(Path(name) for name in (gguf or "").split(",") if name)
    for path in ggufs:
        if not path.is_file():
            raise UsageError(f"--gguf {path}: there is no such file")

    from adder.benchmark import plan as plans

    sections, ours, peers = _parts(only or [], plans.SECTIONS)
    names = tuple(precision or plans.PRECISIONS)
    check_known("--precision", names, plans.PRECISIONS)
    size = model_size or ("tiny" if quick else "130m")
    check_known("--model-size", (size,), tuple(plans.SIZES))
    lengths = context or (plans.QUICK_CONTEXTS if quick else plans.CONTEXTS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = threads or ((cores or 1,) if quick else (1, cores or 1))
    plan = plans.Plan(
        size=size,
        sections=sections,
        ours=ours,
        peers=peers,
        quick=quick,
        contexts=tuple(sorted(set(lengths))),
        threads=tuple(sorted(set(counts), reverse=True)),
        precisions=tuple(name for name in plans.PRECISIONS if name in names),
        rounds=rounds or (2 if quick else 3),
        limit=limit or (QUICK_LIMIT if quick else 60.0),
        peer_python=None if peer_python is None else str(peer_python.absolute()),
        llama_bench=None if llama_bench is None else llama_bench.absolute(),
        ggufs=ggufs,
    )
    _run(plan, json_file, figure)


def _parts(only: list[str], sections: tuple[str, ...]) -> tuple[frozenset[str], bool, bool]:
    """(what is measured, whether of adder, whether of peers)."""
    check_known("--only", tuple(only), PARTS)
    chosen = [name for name in only if name in sections]
    ours, peers = "adder" in only, "peers" in only
    if peers and not ours and not chosen:
        chosen = ["prefill", "decode", "train"]
    return frozenset(chosen or sections), ours or not peers, peers or not ours


def _run(plan: "Plan", json_file: Path | None, figure: Path | None) -> None:
    from adder.benchmark.figure import picture
    from adder.benchmark.report import page
    from adder.benchmark.results import Results
    from adder.benchmark.run import Run

    results = Results(plan.to_dict())
    carry_out(
        lambda show, save: Run(plan, results, show, save),
        results,
        lambda: page(results),
        lambda: picture(results),
        json_file,
        figure,
    )


def commands() -> typer.Typer:
    """Return `adder bench cpu` and `adder bench gpu`."""
    group = typer.Typer(
        help="Measure this machine, and adder on it beside other libraries.",
        rich_markup_mode=None,
    )
    group.command("cpu")(cpu)
    group.command("gpu")(gpu)
    return group
