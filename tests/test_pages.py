"""The HTML pages of `adder explain` and `adder compare`: read as HTML, and, where there is a Chromium, in it."""

import shutil
from itertools import pairwise

import pytest

from adder.comparison.figures import apart, compact, ticks, volume
from adder.comparison.page import page as compare_page
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
    shown = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in HOSTILE)
    assert len(page.texts) == 3
    first, *later = (each.replace("\u21b5", "").replace("\u00b7", "") for each in page.texts)
    assert first == shown
    for drawn in later:
        before, _, rest = drawn.rpartition("% together\n")
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
        "induction heads, % right at 1,024",
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
    assert [compact(x) for x in (0.05, 12, 1000, 50_000, 2e6, 3e9)] == [
        *("0.05", "12", "1k", "50k", "2M", "3G"),
    ]
    assert [volume(x) for x in (896, 1000, 1e7, 2e9)] == ["896 B", "1 KB", "10 MB", "2 GB"]


def test_names_keep_apart_and_stay_inside():
    assert apart([], 100) == []
    assert apart([10, 50], 100) == [10, 50]
    for places in ([10, 11, 12], [98, 99, 100], [0, 90, 91, 92, 100]):
        moved = apart(places, 100)
        assert all(b - a >= 15 for a, b in pairwise(moved))
        assert max(moved) <= 100


def test_parts_of_a_page():
    assert text("a\x07<b>\n'\ud800") == "a\ufffd&lt;b&gt;\n&#x27;\ufffd"
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
