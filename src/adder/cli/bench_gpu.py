"""`adder bench gpu`: how near adder is to what this GPU can do, and beside other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from adder.cli.bench_run import carry_out, check_files
from adder.cli.checks import check_known


def gpu(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes, the smallest model: a minute or two.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="limits, operators, lengths, block, models; may be given several times. The "
            "limits are measured always [everything]."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Leave out what has not begun after so many minutes [8]."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures; - prints them instead."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Time against length; shares of limits.")
    ] = None,
) -> None:
    """Measure this GPU, the operators, a Mamba block, and models of random weights.

    Limits come first: bytes copied, exponentials and matrix products in a second. Then all else
    beside the time of its work at these limits, and beside mamba_ssm, causal_conv1d and fla where
    they are installed. Device events, medians, random data. A few minutes; Ctrl-C keeps what was
    measured.
    """
    check_files(json_file, figure)

    from adder.benchmark.gpu.plan import MINUTES, SECTIONS, plan_of

    check_known("--only", only, SECTIONS)

    from adder.benchmark.gpu.figure import picture
    from adder.benchmark.gpu.report import page
    from adder.benchmark.gpu.results import Results
    from adder.benchmark.gpu.run import Run

    plan = plan_of(frozenset(only or SECTIONS), quick, MINUTES if minutes is None else minutes)
    results = Results(plan.to_dict())
    carry_out(
        lambda show, save: Run(plan, results, show, save),
        results,
        lambda: page(results),
        lambda: picture(results),
        json_file,
        figure,
    )
