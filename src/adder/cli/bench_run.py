"""How every benchmark runs on the command line: what is shown, and what is kept when it is interrupted."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adder.cli.checks import check_file


class Figures(Protocol):
    """The results of a run so far."""

    def to_dict(self) -> dict[str, Any]: ...


class Measuring(Protocol):
    """A run: its steps, each shown once, and the work."""

    def steps(self) -> int: ...

    def run(self) -> None: ...


@dataclass(frozen=True)
class _Moment:
    step: int
    words: str

    def __str__(self) -> str:
        return self.words


def check_files(json_file: Path | None, figure: Path | None) -> None:
    """Refuse files that could not be written, before anything is measured."""
    for option, path in (("--json", json_file), ("--figure", figure)):
        if path is not None and str(path) != "-":
            check_file(option, path)


def carry_out(
    make: Callable[[Callable[[str], None], Callable[[], None]], Measuring],
    results: Figures,
    page: Callable[[], str],
    picture: Callable[[], bytes],
    json_file: Path | None,
    figure: Path | None,
) -> None:
    """Run a benchmark, print its tables or its JSON, and write its files.

    Args:
        make: makes the run from what shows a step and what saves what is there.
        page, picture: the results as tables and as a PNG.
    """
    from adder.files import json_bytes, replace_file
    from adder.training.progress import Display, make_display

    display: Display | None = None
    done = 0

    def show(words: str) -> None:
        nonlocal done
        done += 1
        assert display is not None
        display.update(_Moment(done, words))

    def save() -> None:
        if json_file is not None and str(json_file) != "-":
            replace_file(json_file, json_bytes(results.to_dict()))

    run = make(show, save)
    display = make_display(run.steps())
    try:
        run.run()
    finally:
        # Also where it is interrupted: what was measured is kept.
        display.close()
        save()
        if str(json_file) == "-":
            print(json.dumps(results.to_dict(), ensure_ascii=False))
        else:
            print(page())
    if figure is not None:
        replace_file(figure, picture())
