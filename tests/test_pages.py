"""The HTML pages of `adder explain` and `adder compare`: read as HTML, and, where there is a Chromium, in it."""

import shutil
from itertools import pairwise

import pytest

from adder.comparison.figures import apart, figures, ticks
from adder.comparison.page import page as compare_page
from adder.comparison.report import amount, number
from adder.webpage import drawing, table, text

from .browser import Browser
from .pages import HOSTILE, LAYERS, check, cut_short, every_page, explained, results

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Words of a drawing that overlap, that leave it, or that are smaller than can be read.
_WORDS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect(), found = [], seen = [];
  if (!box.width) return found;
  for (const word of svg.querySelectorAll('text')) {
    const a = word.getBoundingClientRect(), name = word.textContent;
    if (a.left < box.left - 1 || a.right > box.right + 1 || a.bottom > box.bottom + 1) found.push('outside: ' + name);
    if (a.height < 11) found.push('small: ' + name);
    for (const [b, other] of seen)
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4)
        found.push(name + ' over ' + other);
    seen.push([a, name]);
  }
  return found;
})"""
# The least contrast of the words of a page against its paper: 4.5 is what WCAG 2 asks for.
_CONTRAST = """(() => {
  const light = c => c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const of = c => (Math.max(light(c), paper) + 0.05) / (Math.min(light(c), paper) + 0.05);
  return Math.min(...[...document.querySelectorAll('p, td, th, h1, h2, dd, figcaption, svg text')].map(each =>
    of(getComputedStyle(each)[each.tagName == 'text' ? 'fill' : 'color'])));
})()"""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return every_page()


def test_every_page_is_whole_and_loads_nothing(pages):
    for name, html in pages.items():
        page = check(html)
        assert len(html) < 600_000, name
        if name.startswith("compare"):
            assert page.texts == []


def test_hostile_text_is_shown_as_text():
    page = check(explained("mamba"))
    shown = HOSTILE.replace("\x07\x1b", "\ufffd\ufffd").replace("\u0000", "\ufffd")
    assert "\u202e" in shown
    assert "\u200d" in shown
    assert len(page.texts) == 3
    first, *later = (each.replace("\u21b5", "").replace("\u00b7", "") for each in page.texts)
    assert first == shown
    for drawn in later:
        before, _, rest = drawn.rpartition("% of the sum at most\n")
        assert shown.endswith(rest)
        assert bool(before) == (rest != shown)
    named = results()
    for rows in (named.models, named.training, named.generation, named.quality):
        rows[0]["layer"] = "<script>'\"&"
    assert "<script>'\"&" in check(compare_page(named)).words


def test_a_comparison_says_what_is_missing():
    words = check(compare_page(cut_short())).words
    assert "It was interrupted" in words
    assert "a step on 512 took <9> s" in words
    assert "How fast they train" in words
    empty = check(compare_page(type(results())({}, machine="m")))
    assert "Nothing was measured." in empty.words
    assert empty.named("svg") == empty.named("table") == []
    whole = check(compare_page(results()))
    assert "interrupted" not in whole.words
    assert "Left out" not in whole.words
    assert "mean of 2 trainings" in whole.words
    for layer in LAYERS:
        assert whole.words.count(layer) >= 4 + 6 + 3


def test_only_a_short_training_is_said_to_be_short():
    short = results()
    assert "So short a training" in check(compare_page(short)).words
    short.settings["scaled"] = True
    assert "So short a training" not in check(compare_page(short)).words


def test_a_page_says_what_its_numbers_are_of():
    selective, linear = (" ".join(check(explained(k)).words.split()) for k in ("mamba", "s4"))
    for words in (selective, linear):
        assert words.count("without the skip D u[t]") == 2
        assert "All that the scan knows of the past is its state: " in words
        assert "the layer knows of the past" not in words
    assert "who also knows every step and B, gives the input" in selective
    assert "The short convolution keeps a few inputs of its own" in selective
    assert "every step and B" not in linear
    assert "short convolution keeps" not in linear
    # A beginning stands out where the state is the same at every token, and where it does.
    first = "The first tokens stand out"
    for kind, text_of, said in (
        ("s4", HOSTILE[:40], True),
        ("s4d", HOSTILE[:40], True),
        ("s4", HOSTILE[:2], False),
        ("mamba", HOSTILE[:40], False),
        ("mamba", HOSTILE[:2], False),
        ("mamba2", HOSTILE[:40], False),
    ):
        assert (first in check(explained(kind, text_of)).words) == said, (kind, text_of)
    assert first not in check(explained("s4", HOSTILE[:40], last=12)).words
    of_all, of_last = (check(explained("mamba", HOSTILE * 3, last)).words for last in (None, 900))
    assert "together 5% of the sum at most" in of_all
    assert "together 5% of the sum over the tokens shown at most" in of_last


def test_bars_are_as_long_as_their_numbers():
    page = check(compare_page(results(("mamba", "lstm"), 1)))
    widths = [each["style"] for each in page.named("i")]
    assert [each.split(";")[0] for each in widths] == [
        *("width:97.2%", "width:100.0%"),  # of the most bits
        *("width:50.0%", "width:57.0%"),
        *("width:100.0%", "width:100.0%", "width:0.0%", "width:0.0%"),
    ]
    for words in (
        "3.500",
        "3.600",
        "50.0%",
        "57.0%",
        "100.0%",
        "induction heads, % of 64 answers right at 1,024 tokens",
    ):
        assert words in page.words


def test_axes_hold_their_values():
    for low, high in [(1, 1), (3, 3.1), (896, 7.3e6), (0.032, 1.15), (5_821, 115_151), (1e-9, 2e9)]:
        marks = ticks(low, high)
        assert marks[0] <= low * 1.001
        assert marks[-1] >= high * 0.999
        assert marks[-1] / marks[0] >= 5
        assert 3 <= len(marks) <= 21
        assert all(b > a for a, b in pairwise(marks))


def test_a_number_is_written_in_one_way():
    """A table and an axis of one page show the same bytes and the same speed in the same words."""
    shown = {
        0.05: "0.05",
        12: "12",
        1000: "1,000",
        51_234: "51,234",
        2e6: "2M",
        999_700: "1M",
        3e9: "3G",
    }
    assert {x: number(x) for x in shown} == shown
    shown = {
        896: "896 B",
        1000: "1 KB",
        19_001: "19 KB",
        999_700: "1 MB",
        1e7: "10 MB",
        2e9: "2 GB",
    }
    assert {x: amount(x) for x in shown} == shown
    assert {each.amount for each in figures(results())} == {amount, number}
    words = check(compare_page(results(("mamba", "lstm"), 1))).words
    for layer, size in (("mamba", 19_000), ("lstm", 19_001)):
        assert f"{layer}, 256: {amount(size)}" in words  # of the figure
    assert words.count(amount(19_000)) >= 2 * 9 * 2 + 4  # and of the table


def test_names_keep_apart_and_stay_inside():
    assert apart([], 100) == []
    assert apart([10, 50], 100) == [10, 50]
    for places in ([10, 11, 12], [98, 99, 100], [0, 90, 91, 92, 100]):
        moved = apart(places, 100)
        assert all(b - a >= 15 for a, b in pairwise(moved))
        assert max(moved) <= 100


def test_parts_of_a_page():
    assert text("a\x07<b>\n'\ud800") == "a\ufffd&lt;b&gt;\n&#x27;\ufffd"
    for name, character in {
        "no-break space": "\xa0",
        "soft hyphen": "\xad",
        "ideographic space": "\u3000",
        "zero width joiner": "\u200d",
        "zero width non-joiner": "\u200c",
        "line separator": "\u2028",
        "unassigned": "\u0378",
        "private use": "\ue000",
        "tabulation": "\t",
        "line feed": "\n",
    }.items():
        assert text(f"a{character}b") == f"a{character}b", name
    for name, character in {
        "null": "\0",
        "carriage return": "\r",
        "escape": "\x1b",
        "delete": "\x7f",
        "next line": "\x85",
        "high surrogate": "\ud800",
        "low surrogate": "\udfff",
    }.items():
        assert text(f"a{character}b") == "a\ufffdb", name
    drawn = drawing('a "drawing"', 10, lambda width: f"<path d='M{width}'/>")
    assert 'viewBox="0 0 800 10" role="img" aria-label="a &quot;drawing&quot;"' in drawn
    assert 'class="narrow" viewBox="0 0 360 10"' in drawn
    made = table("Said <so>.", ["a", "b"], [["1", "<2>"]], words=True)
    assert "<caption>Said &lt;so&gt;.</caption>" in made
    assert '<th scope="row">1</th><td class="words">&lt;2&gt;</td>' in made


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH to open pages in")
def test_pages_in_a_browser(pages, tmp_path):
    browser = Browser(CHROMIUM, tmp_path / "profile")
    try:
        for name, html in pages.items():
            path = tmp_path / f"{name}.html"
            path.write_text(html, encoding="utf-8")
            for width in (390, 1280):
                for dark in (False, True):
                    browser.open(path, width, dark=dark)
                    where = f"{name}, {width}, dark {dark}"
                    assert browser.value("document.documentElement.scrollWidth") <= width, where
                    assert browser.value(_WORDS) == [], where
                    assert browser.value(_CONTRAST) >= 4.5, where
                    shown = browser.value("getComputedStyle(document.body).backgroundColor")
                    assert shown == ("rgb(22, 22, 24)" if dark else "rgb(255, 255, 255)")
                    methods = [each.get("method") for each in browser.events]
                    assert "Runtime.exceptionThrown" not in methods, where
                    assert "Runtime.consoleAPICalled" not in methods, where
                    assert "Log.entryAdded" not in methods, where
                    asked = [
                        each["params"]["request"]["url"]
                        for each in browser.events
                        if each.get("method") == "Network.requestWillBeSent"
                    ]
                    assert [url for url in asked if url != "data:,"] == [path.as_uri()], where
    finally:
        browser.close()
