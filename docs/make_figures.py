"""Draw the figures of the lesson into docs/figures: all of them, or those named.

python docs/make_figures.py [NAME ...]
"""

import sys
from pathlib import Path

from figures import FIGURES, save


def main(names: list[str], folder: Path | None = None) -> None:
    """Draw and save; an unknown name lists those there are."""
    known = {figure.name: figure for figure in FIGURES}
    if unknown := sorted(set(names) - known.keys()):
        raise SystemExit(f"no figure {unknown[0]}: choose among {', '.join(known)}")
    for name in names or known:
        path = save(known[name], folder)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
