"""What all figures share: colours, sizes, and how a picture is written."""

import hashlib
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib import figure as mpl_figure
from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
# Okabe and Ito's colours: told apart by readers of every kind of colour vision.
BLUE, RED, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
ORANGE, SKY, INK, GREY, PALE = "#E69F00", "#56B4E9", "#2B2B2B", "#757575", "#ECEAE4"

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": "#E2E2E2",
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.dpi": 200,
    "savefig.dpi": 200,
}


class Figure(NamedTuple):
    """One picture: `data` computes what it shows, `draw` puts that on an empty figure of `size` inches."""

    name: str
    size: tuple[float, float]
    data: Callable[[], dict[str, Any]]
    draw: Callable[[mpl_figure.Figure, dict[str, Any]], None]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return HERE / f"{self.name}.png"

    @property
    def source(self) -> str:
        """A hash of the code that makes it, written into the picture: a test sees when one is older than the other."""
        code = inspect.getsource(self.data) + inspect.getsource(self.draw) + str(self.size)
        return hashlib.sha256(code.encode()).hexdigest()[:16]


def save(figure: Figure, folder: Path | None = None) -> Path:
    """Compute, draw, write: 256 colours are enough for lines, and a third of the bytes."""
    drawn, text = io.BytesIO(), PngImagePlugin.PngInfo()
    with mpl.rc_context(_STYLE):
        picture = mpl_figure.Figure(figsize=figure.size, layout="constrained")
        figure.draw(picture, figure.data())
        picture.savefig(drawn)
    text.add_text("Source", figure.source)
    few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    path = figure.path if folder is None else folder / figure.path.name
    few.save(path, optimize=True, pnginfo=text)
    return path


def note(axes: "Axes", x: float, y: float, text: str, **options: Any) -> None:
    """A remark inside a plot, at a place in data coordinates."""
    options = {"fontsize": 8, "color": INK, **options}
    axes.annotate(text, (x, y), **options)
