"""What every page of adder is made of: one HTML file, light and dark, wide and on a phone, that loads nothing.

A figure is drawn twice, for a wide window and for a narrow one, so that its words are never shrunk with it; the style
shows the one that fits. A number of a page is in the text of the page, never in colour alone.
"""

import html
import unicodedata
from collections.abc import Callable, Iterable, Sequence

WIDE, NARROW = 800, 360
_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #f5f5f7; --faint: #63636a; --line: #d9d9de;
  --tint: 226 98 16; --other: #1d6fb8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f2f2f4; --paper: #161618; --soft: #222226; --faint: #a8a8b0; --line: #3a3a3e;
    --tint: 232 112 32; --other: #6cb8f5; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 52rem; padding: 1rem 1rem 3rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 2.25rem 0 .25rem; }
h3 { font-size: .95rem; margin: 1rem 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.note, figcaption, dd { color: var(--faint); font-size: .9rem; }
.notice { background: var(--soft); border-left: .25rem solid rgb(var(--tint)); padding: .5rem .75rem; }
figure { margin: .75rem 0 1.25rem; } figcaption { margin-top: .25rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; } svg.narrow { display: none; max-width: 30rem; }
@media (max-width: 43rem) { svg.wide { display: none; } svg.narrow { display: block; } }
svg text { fill: var(--faint); font: 13px system-ui, sans-serif; }
svg.narrow text { font-size: 12px; } svg .name { fill: var(--ink); }
.rule { stroke: var(--line); fill: none; }
.scroll { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); font-size: .9rem; padding-bottom: .25rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: baseline; }
th { font-weight: 600; } tbody th { font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: var(--paper); }
th.words, td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 43rem) {
  table { font-size: .82rem; } th, td { padding: .3rem .4rem; } tbody th { white-space: normal; min-width: 6rem; }
}
"""


def document(title: str, style: str, parts: Iterable[str]) -> str:
    """The whole file; `parts` are its body, as HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def prints(character: str) -> bool:
    """Whether a page or a terminal can show a character: no control character, no half of a surrogate pair.

    All else passes: spaces of every width, joiners, soft hyphens, and what this Python's Unicode does not know yet.
    """
    return unicodedata.category(character) not in ("Cc", "Cs")


def text(words: str) -> str:
    """Text of a page; what does not print, but for tabs and ends of lines, as U+FFFD."""
    held = "".join(c if prints(c) or c in "\n\t" else "\ufffd" for c in words)
    return html.escape(held)


def drawing(about: str, height: int, draw: Callable[[int], str]) -> str:
    """A drawing in both widths: `draw(width)` returns the inside of an svg; `about` says what is seen, in words."""
    return "".join(
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{text(about)}">'
        f"{draw(width)}</svg>"
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )


def figure(drawn: str, caption: str) -> str:
    return f"<figure>{drawn}<figcaption>{text(caption)}</figcaption></figure>"


def label(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Words in a drawing."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(words)}</text>'


def table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False
) -> str:
    """A table of text cells that scrolls on its own where it is too wide; `words`: the last column is a sentence."""
    last = len(heads) - 1 if words else -1
    kinds = ["", *(' class="words"' if i == last else "" for i in range(1, len(heads)))]
    top = "".join(
        f'<th scope="col"{k}>{text(name)}</th>' for k, name in zip(kinds, heads, strict=True)
    )
    body = []
    for first, *rest in rows:
        cells = "".join(
            f"<td{k}>{text(cell)}</td>" for k, cell in zip(kinds[1:], rest, strict=True)
        )
        body.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    named = f"<caption>{text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption or "table")}"><table>{named}'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
