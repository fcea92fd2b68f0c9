"""How what measures runs on the command line: what is shown, and what is kept when it is interrupted."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adder.cli.checks import check_file

if TYPE_CHECKING:
    from adder.training.progress import Display


class Figures(Protocol):
    """The results of a run so far."""

    def to_dict(self) -> dict[str, Any]: ...


class Measuring(Protocol):
    """A run: its steps, each shown once, and the work."""

    def steps(self) -> int: ...

    def run(self) -> None: ...


@dataclass(frozen=True)
class Moment:
    """How many steps, or parts of the time, are over, and what is measured now."""

    step: int
    words: str

    def __str__(self) -> str:
        return self.words


def check_files(json_file: Path | None, figure: Path | None) -> None:
    """Refuse files that could not be written, before anything is measured."""
    for option, path in (("--json", json_file), ("--figure", figure)):
        if path is not None and str(path) != "-":
            check_file(option, path)


def write_json(results: Figures, json_file: Path | None) -> None:
    """Write the file; none is to be written where there is no name, or where "-" means standard output."""
    from adder.files import json_bytes, replace_file

    if json_file is not None and str(json_file) != "-":
        replace_file(json_file, json_bytes(results.to_dict()))


@contextmanager
def kept(
    display: "Display",
    results: Figures,
    page: Callable[[], str],
    save: Callable[[], None],
    json_file: Path | None,
) -> Iterator[None]:
    """Around a run: save and print what was measured, also where it is interrupted.

    Args:
        page: the results as tables; not asked for where json_file is "-".
        save: writes the files.
    """
    try:
        yield
    finally:
        display.close()
        save()
        if str(json_file) == "-":
            print(json.dumps(results.to_dict(), ensure_ascii=False))
        else:
            print(page())


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
    from adder.files import replace_file
    from adder.training.progress import make_display

    display: Display | None = None
    done = 0

    def show(words: str) -> None:
        nonlocal done
        done += 1
        assert display is not None
        display.update(Moment(done, words))

    def save() -> None:
        write_json(results, json_file)

    run = make(show, save)
    display = make_display(run.steps())
    with kept(display, results, page, save, json_file):
        run.run()
    if figure is not None:
        replace_file(figure, picture())
