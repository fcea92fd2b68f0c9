"""A comparison as one HTML file: tables, and figures drawn by hand. It asks nothing of any network."""

from collections.abc import Callable

from adder.comparison.figures import STYLE, figures, learned, question
from adder.comparison.report import amount, number, quality, spread
from adder.comparison.results import Results, Row
from adder.webpage import document, table, text

_HEAD = "RNN, Transformer, S4 and Mamba, measured"


def page(results: Results) -> str:
    """Return the file."""
    body = [
        f"<h1>{_HEAD}</h1>",
        f"<p>{_models_in_words(results)}{text(results.machine)}. "
        f"Made by <code>adder compare</code> in {results.seconds:.0f} s.</p>",
        *_notices(results),
        *learned(results),
        *(each.drawn() for each in figures(results)),
        *_summary(results),
        *_exponents(results),
        *_models(results),
        *_left_out(results),
    ]
    return document("adder compare: " + _HEAD, STYLE, body)


def _models_in_words(results: Results) -> str:
    if not results.models:
        return "On "
    count, size = len(results.models), results.models[0]["parameters"]
    kinds = "One kind" if count == 1 else f"{count} kinds"
    return f"{kinds} of block, in models of about {size:,} parameters each, on "


def _notices(results: Results) -> list[str]:
    measured = results.training or results.generation or results.quality
    words = []
    if not results.complete:
        words.append(
            "It was interrupted: what was measured until then is here, the rest is missing."
        )
    if not measured:
        words.append("Nothing was measured.")
    if results.left_out:
        words.append("Some figures were left out; the end of the page says which, and why.")
    return [f'<p class="notice">{" ".join(words)}</p>'] if words else []


def _summary(results: Results) -> list[str]:
    """The table of the story: what each is good at."""
    rows: list[list[str]] = [
        [
            question(results, task, unit),
            *(quality(results, layer, task, unit) for layer in results.layers),
        ]
        for task, unit in results.questions()
    ]
    for words, key, size in (
        ("training, tokens/s of rows of", "training", "length"),
        ("writing, tokens/s after", "generation", "context"),
    ):
        measured: list[Row] = getattr(results, key)
        for at in _ends(measured, size):
            here = {r["layer"]: r for r in measured if r[size] == at}

            def speed(row: Row, tokens: int = at if key == "training" else 1) -> str:
                return number(tokens / row["seconds"])

            rows.append(
                [
                    f"{words} {at:,}",
                    *_cells(results, here, speed),
                ]
            )
    for at in _ends(results.generation, "context"):
        here = {r["layer"]: r for r in results.generation if r["context"] == at}
        rows.append([f"state after {at:,}", *_cells(results, here, lambda r: amount(r["bytes"]))])
    if not rows:
        return []
    caption = "Tokens in a row or a context; - is not measured."
    if words := spread(results):
        caption += f" {words}."
    return ["<h2>All in one table</h2>", table(caption, ["", *results.layers], rows)]


def _ends(rows: list[Row], size: str) -> list[int]:
    """The least and the largest length."""
    return sorted({f(row[size] for row in rows) for f in (min, max)}) if rows else []


def _cells(results: Results, here: dict[str, Row], show: Callable[[Row], str]) -> list[str]:
    return [show(here[layer]) if layer in here else "-" for layer in results.layers]


def _exponents(results: Results) -> list[str]:
    exponents = {row["layer"]: row for row in results.exponents()}
    rows = []
    for words, key in (("a training step", "training"), ("a written token", "token")):
        cells = [
            "-"
            if exponents[layer][key] is None
            else f"{exponents[layer][key]:.2f} ({exponents[layer][key + '_theory']})"
            for layer in results.layers
        ]
        if set(cells) - {"-"}:
            rows.append([words, *cells])
    if not rows:
        return []
    return [
        "<h2>How the time grows</h2>",
        "<p>The power p of time ~ length<sup>p</sup>, fitted over the longer half of the lengths, and in brackets what "
        "theory says of very long ones. Where lengths are short, what does not depend on them still weighs, and p is "
        "less.</p>",
        table("", ["", *results.layers], rows),
    ]


def _models(results: Results) -> list[str]:
    if not results.models:
        return []
    rows = [
        [row["layer"], str(row["d_model"]), f"{row['parameters']:,}", f"{row['difference']:+.1%}"]
        for row in results.models
    ]
    caption = "The width of each model is the one that comes nearest to the parameters of mamba."
    return [
        "<h2>The models</h2>",
        table(caption, ["", "width", "parameters", "beside mamba"], rows),
    ]


def _left_out(results: Results) -> list[str]:
    if not results.left_out:
        return []
    items = [
        f"<li>{text(row['part'])}, {text(row['layer'])}: {text(row['why'])}</li>"
        for row in results.left_out
    ]
    return ["<h2>Left out</h2>", '<ul class="note">', *items, "</ul>"]
