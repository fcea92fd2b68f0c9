"""Pages of every kind, of tiny models and made-up figures, and what each of them must hold."""

import re
from html.parser import HTMLParser

import torch

import adder
from adder.cli.explain_page import Report, pieces
from adder.cli.explain_page import page as explain_page
from adder.comparison.page import page as compare_page
from adder.comparison.results import Results
from adder.data.vocabulary import Bytes

HOSTILE = (
    "<script>alert(1)</script> \"quoted\" & 'single' <img src=x onerror=alert(1)> </div></style></svg>\n"
    "\x07\x1b[31m\u202e\u0000 \U0001f40d\U0001f469\u200d\U0001f467 中文的词元 עברית https://example.org/x.js "
    + "Donaudampfschifffahrtsgesellschaft" * 6
    + "\n"
)
LAYERS = ("mamba", "mamba2", "s4", "s4d", "transformer", "lstm", "gru")
_EMPTY = ("meta", "link")


def explained(kind: str, text: str = HOSTILE, last: int | None = None) -> str:
    """The page of an untrained model of 3 layers that read a text."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "d_model": 16, "n_layer": 3, "d_state": 8, "layer": kind}
    more = {"headdim": 8} if kind == "mamba2" else {}
    model = adder.LanguageModel(adder.LanguageModelConfig(**sizes, **more)).eval()
    ids = Bytes().encode(text)
    seen = adder.explain(model, ids)
    shown = tuple(pieces(Bytes(), ids.tolist()))
    return explain_page(Report(f"runs/<{kind}>", "a <text>", len(ids), shown, seen, last))


def results(layers: tuple[str, ...] = LAYERS, seeds: int = 2) -> Results:
    """A comparison that measured everything."""
    found = Results({}, machine="a <machine>, 2 cores", seconds=93.0, complete=True)
    for i, layer in enumerate(layers):
        found.models.append(
            {"layer": layer, "d_model": 64, "parameters": 81_856 - 9 * i, "difference": -0.001 * i}
        )
        for n in range(8, 17):
            seconds = 2.0**n / (40_000 + 9000 * i) * (2 ** (n - 8) if layer == "transformer" else 1)
            found.training.append({"layer": layer, "length": 2**n, "seconds": seconds})
            size = 2**n * 900 if layer == "transformer" else 19_000 + i
            found.generation.append(
                {"layer": layer, "context": 2**n, "seconds": 1e-3 * (1 + i), "bytes": size}
            )
        for seed in range(seeds):
            for task, unit, value, asked in [
                ("text", "bits per byte", 3.5 + 0.1 * i, 50_000),
                ("selective-copying", "right at 36", 0.5 + 0.07 * i, 2220),
                ("induction-heads", "right at 64", 1.0, 312),
                ("induction-heads", "right at 1024", 0.0, 64),
            ]:
                row = {"layer": layer, "task": task, "seed": seed, "unit": unit, "value": value}
                found.quality.append({**row, "asked": asked, "tokens": 122_880})
    return found


def cut_short() -> Results:
    """A comparison that was interrupted: parts, models and lengths are missing."""
    found = results(("mamba", "transformer"), 1)
    found.complete, found.quality = False, found.quality[:1]
    found.training = [r for r in found.training if r["layer"] == "mamba" or r["length"] < 1000]
    found.generation = found.generation[:1]
    found.leave_out("training", "transformer", "1,024 and more: a step on 512 took <9> s")
    return found


def every_page() -> dict[str, str]:
    only = results()
    only.generation, only.quality = [], []
    return {
        **{f"explain {kind}": explained(kind) for kind in ("mamba", "mamba2", "s4", "s4d")},
        "explain last": explained("mamba", last=12),
        "explain two tokens": explained("s4", "ab"),
        "compare": compare_page(results()),
        "compare interrupted": compare_page(cut_short()),
        "compare --only training": compare_page(only),
        "compare without figures": compare_page(Results({}, machine="a machine")),
    }


class Page(HTMLParser):
    """A page that was read: its elements must be closed in order.

    elements: (name, attributes) in order; texts: of each `.text` block; words: all that is shown.
    """

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == name]

    def tokens(self) -> list[dict[str, str | None]]:
        """The tinted tokens of all texts."""
        return [each for each in self.named("span") if "--a:" in (each.get("style") or "")]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag == "div" and ("class", "text") in attrs:
            self.texts.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if self.texts and "div" in self.open and "table" not in self.open:
            self.texts[-1] += data


def check(text: str) -> Page:
    """What holds of every page: it is whole, loads nothing, fits a phone and the night, and says what it draws."""
    page = Page(text)
    style = text[text.index("<style>") : text.index("</style>")]
    assert text.startswith("<!doctype html>\n<html lang=")
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named(
        "meta"
    )
    assert "color-scheme: light dark" in style
    assert "prefers-color-scheme: dark" in style
    for word in ("url(", "@import", "http"):
        assert word not in style
    for name, attributes in page.elements:
        assert name not in ("script", "img", "iframe", "object", "a", "form", "input")
        for key, value in attributes.items():
            assert key not in ("src", "srcset")
            assert not key.startswith("on")
            assert key != "href" or value == "data:,"
    assert len(page.named("h1")) == 1
    drawings = page.named("svg")
    assert [each["class"] for each in drawings] == ["wide", "narrow"] * (len(drawings) // 2)
    for each in drawings:
        assert each["role"] == "img"
        assert len(each["aria-label"] or "") > 20
    assert len(page.named("figure")) == len(page.named("figcaption")) == len(drawings) // 2
    numbers = [value or "" for _, each in page.elements for value in each.values()]
    assert not re.search(r"\b(nan|inf)\b", " ".join([page.words, *numbers]).lower())
    return page
