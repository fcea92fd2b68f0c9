"""The figures of docs/lesson.md: what each shows is computed by its `data`, and drawn by its `draw`."""

from figures import hippo, s4, scan, selection, systems
from figures.style import Figure, save

__all__ = ["FIGURES", "Figure", "save"]

FIGURES: tuple[Figure, ...] = (
    *(*systems.FIGURES, *hippo.FIGURES, *s4.FIGURES),
    *(*scan.FIGURES, *selection.FIGURES),
)
