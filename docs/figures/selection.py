"""What a Mamba that was taught to look for a mark takes in, beside an S4 that was taught the same."""

from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure as Picture

import adder
from adder.comparison.match import match
from adder.data.synthetic import Synthetic, make_synthetic
from adder.layers import parameter_groups
from figures.style import BLUE, GREY, PALE, RED, Figure, note

TEXT = "FCABEDFCABEDB>DACFEBDCAFEBDCFAB>"
MARKED = TEXT.index(">") + 1


def letters() -> Synthetic:
    """The rows of section 17."""
    return make_synthetic("induction-heads", symbols=6, length=32)


@cache
def learned(layer: str) -> adder.LanguageModel:
    """The model that section 17 trains, of the same seed."""
    source = letters()
    torch.manual_seed(0)
    config = match(layer, vocab_size=source.vocab_size, d_model=32, n_layer=1).config
    model = adder.LanguageModel(config)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-2, weight_decay=0.01))
    for step in range(300):
        ids, targets = source.batch(64, seed=0, step=step)
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, -1], targets[:, -1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def attention_data() -> dict[str, Any]:
    """|M[t, s]| of both, the mean over channels: (32, 32), NaN above the diagonal."""
    ids = [letters().alphabet.index(letter) for letter in TEXT]
    found = {}
    for layer in ("s4", "mamba"):
        matrix = np.full((len(ids), len(ids)), np.nan)
        for t in range(len(ids)):
            row = adder.explain(learned(layer), ids, token=t).row
            matrix[t, : t + 1] = np.abs(row.attention).mean(axis=1)
        found[layer] = matrix
    return found


def draw_attention(picture: Picture, data: dict[str, Any]) -> None:
    """Both matrices, each relative to its largest entry."""
    titles = {"s4": "S4: by age", "mamba": "Mamba: by content"}
    colors = mpl.colormaps["Blues"].resampled(24)
    colors.set_bad(PALE)
    for plot, (layer, matrix) in zip(picture.subplots(1, 2), data.items(), strict=True):
        image = plot.imshow(matrix / np.nanmax(matrix), cmap=colors, vmin=0, vmax=1)
        note(plot, 30.5, 3, "the future", color=GREY, ha="right")
        plot.set_title(titles[layer])
        plot.set_xticks(range(len(TEXT)), list(TEXT), fontsize=6.5)
        plot.set_yticks(range(len(TEXT)), list(TEXT), fontsize=6.5)
        plot.tick_params(length=0, pad=2)
        plot.set(xlabel="s, the letter read", ylabel="t, the output")
        plot.grid(False)
        plot.spines[:].set_visible(False)
    picture.colorbar(image, ax=picture.axes, shrink=0.75, label="|M[t, s]|, largest = 1")


def selection_data() -> dict[str, Any]:
    """The step size of every letter, and the share of it in the last output."""
    ids = [letters().alphabet.index(letter) for letter in TEXT]
    seen = adder.explain(learned("mamba"), ids)
    return {"steps": seen.layers[0].steps, "shares": seen.row.shares}


def draw_selection(picture: Picture, data: dict[str, Any]) -> None:
    """One bar for each letter: its step above, its share below."""
    above, below = picture.subplots(2, 1, sharex=True)
    titles = ("the step size $\\Delta$ of each letter, mean over channels",
              "its share in the answer at the end")  # fmt: skip
    for plot, values, title in zip((above, below), data.values(), titles, strict=True):
        colors = [RED if step == MARKED else BLUE for step in range(len(TEXT))]
        plot.bar(range(len(TEXT)), values, color=colors, width=0.72)
        plot.set_title(title)
        plot.grid(False, axis="x")
        plot.set_xlim(-0.7, len(TEXT) - 0.3)
    above.tick_params(axis="x", length=0)
    below.set_xticks(range(len(TEXT)), list(TEXT))
    below.tick_params(axis="x", length=0)
    below.set_ylim(0, 1)
    note(
        above,
        MARKED + 0.7,
        0.86 * float(data["steps"].max()),
        "the letter behind the mark",
        color=RED,
    )
    note(below, len(TEXT) - 0.6, 0.1, "asks", color=GREY, ha="right")


FIGURES = (
    Figure("attention", (7.2, 3.3), attention_data, draw_attention),
    Figure("selection", (7.2, 3.2), selection_data, draw_selection),
)
