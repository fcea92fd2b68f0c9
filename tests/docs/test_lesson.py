"""The lesson is true: its snippets run, its figures show what it says, its names and links lead somewhere."""

import importlib
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from typer.main import get_command

import adder
from adder.cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"lesson.md": 60, "lesson.zh.md": 25}  # and the fewest characters that describe a figure
FIGURES = (
    *("one_system", "discretisation", "convolution"),
    *("basis", "memory", "eigenvectors", "kernels"),
    *("attention", "tree", "kept", "selection"),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    """Every figure by its name."""
    sys.path.insert(0, str(DOCS))
    yield {figure.name: figure for figure in importlib.import_module("figures").FIGURES}
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def command(figures: dict[str, Any]) -> ModuleType:  # noqa: ARG001
    return importlib.import_module("make_figures")


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> Iterator[str]:
    """The code of a page, with as many empty lines before it as there are: a traceback then names the line."""
    text = read(page)
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield "\n" * text.count("\n", 0, found.start(1)) + found[1]


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def code(page: str) -> Iterator[list[str]]:
    """The tokens of each snippet, without what a translation may change: comments and docstrings."""
    for block in blocks(page, "python"):
        yield [
            token.string
            for token in tokenize.generate_tokens(io.StringIO(block).readline)
            if token.type not in (tokenize.COMMENT, tokenize.NL)
            and not token.string.startswith('"""')
        ]
    for block in blocks(page, "sh"):
        yield [line.partition("#")[0].strip() for line in block.strip().split("\n")]


def test_the_pages_differ_in_words_not_in_code() -> None:
    english, chinese = (list(code(page)) for page in PAGES)
    assert len(english) >= 30
    assert chinese == english


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run_from_top_to_bottom(page: str) -> None:
    namespace: dict[str, Any] = {}
    ran = 0
    for block in blocks(page, "python"):
        exec(compile(block, str(DOCS / page), "exec"), namespace)
        ran += 1
    assert ran >= 30


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_claims_something(page: str) -> None:
    silent = [block.strip() for block in blocks(page, "python") if "assert " not in block]
    # One trains the model that the next one asks.
    assert [block.splitlines()[0] for block in silent] == [
        "from adder.layers import parameter_groups"
    ]


@pytest.mark.parametrize("page", PAGES)
def test_names_of_adder_are_names_of_adder(page: str) -> None:
    names = set(re.findall(r"`(adder(?:\.\w+)+)`", read(page)))
    assert "adder.discretize" in names
    for name in names:
        value = adder
        for part in name.split(".")[1:]:
            value = getattr(value, part)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = read(page)
    anchors = {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20
    for link in links:
        target, _, anchor = link.partition("#")
        assert (DOCS / target).exists(), link
        assert not anchor or anchor in anchors, link


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_they_are_given(page: str) -> None:
    commands: Any = get_command(app())
    lines = [line for block in blocks(page, "sh") for line in block.split("\n") if line.strip()]
    assert lines
    for line in lines:
        words = line.partition("#")[0].split()
        assert words[0] == "adder"
        command = commands
        for word in words[1:]:  # "bench cpu" is a command of a command
            command = getattr(command, "commands", {}).get(word, command)
        known = {name for each in command.params for name in each.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES)
def test_the_page_shows_every_figure_once(page: str, figures: dict[str, Any]) -> None:
    figure = rf"^!\[[^\]]{{{PAGES[page]},}}\]\(figures/(\w+)\.png\)$"
    shown = re.findall(figure, read(page), re.MULTILINE)
    assert shown == list(FIGURES)
    assert sorted(shown) == sorted(figures)
    assert sorted(shown) == sorted(path.stem for path in (DOCS / "figures").glob("*.png"))


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_are_those_of_the_code_and_small(name: str, figures: dict[str, Any]) -> None:
    figure = figures[name]
    with Image.open(figure.path) as picture:
        assert picture.info["Source"] == figure.source, "draw again: python docs/make_figures.py"
        assert picture.width >= 1400
    assert figure.path.stat().st_size < 120_000


def test_the_command_draws(
    command: ModuleType, figures: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["one_system"], tmp_path)
    assert capsys.readouterr().out.startswith("one_system.png: ")
    with (
        Image.open(tmp_path / "one_system.png") as drawn,
        Image.open(figures["one_system"].path) as kept,
    ):
        assert drawn.size == kept.size
    with pytest.raises(SystemExit, match=r"no figure cat: choose among one_system, "):
        command.main(["cat"], tmp_path)


def test_the_recurrence_lies_on_the_curve(figures: dict[str, Any]) -> None:
    data = figures["one_system"].data()
    on_curve = torch.stack(
        [
            torch.from_numpy(_interpolated(data["sampled_times"], data["times"], column))
            for column in data["states"].T
        ],
        dim=1,
    )
    assert (data["sampled"] - on_curve).abs().max() < 2e-4  # of the straight lines between points


def _interpolated(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Any:
    import numpy as np

    return np.interp(at, x, y)


def test_the_zero_order_hold_is_exact_and_euler_explodes(figures: dict[str, Any]) -> None:
    data = figures["discretisation"].data()
    errors = {method: torch.tensor(values) for method, values in data["errors"].items()}
    assert errors["zoh"].max() < 1e-12
    assert errors["euler"][0] > 10
    assert data["paths"][0.4]["euler"].abs().max() > 10
    for method, factor in (("euler", 2), ("backward_euler", 2), ("bilinear", 4)):
        assert errors[method][-2] / errors[method][-1] == pytest.approx(factor, rel=0.05)


def test_the_two_views_differ_by_rounding(figures: dict[str, Any]) -> None:
    data = figures["convolution"].data()
    assert (data["convolution"] - data["recurrence"]).abs().max() < 1e-15
    assert data["recurrence"].abs().max() > 0.5


def test_the_recent_past_is_sharp_and_the_old_past_blurred(figures: dict[str, Any]) -> None:
    data = figures["memory"].data()
    evenly, fading, window, fourier, _ = data.values()
    error = {
        name: (each.remembered - each.signal).abs()
        for name, each in (("evenly", evenly), ("fading", fading), ("window", window))
    }
    assert error["evenly"][(evenly.ago > 0.2) & (evenly.ago < 9.8)].max() < 0.05
    recent, old = fading.ago < 1.5, fading.ago > 5
    assert error["fading"][recent].mean() < 0.01 < 0.2 < error["fading"][old].mean()
    assert error["window"][window.ago < 3].max() < 0.05
    for each in (window, fourier):
        assert bool(each.remembered[each.ago > 3].isnan().all())


def test_the_state_weighs_the_past_by_the_functions_of_its_measure(figures: dict[str, Any]) -> None:
    for measure, each in figures["basis"].data().items():
        difference = (each["ideal"] - each["actual"]).abs()
        if measure in ("legs", "lagt"):
            assert difference.max() < 1e-12
        else:  # the end of a window, roughly
            assert difference[(each["ago"] > 0.1) & (each["ago"] < 0.9)].max() < 0.5
            assert each["actual"][each["ago"] > 1.1].abs().max() < 0.1


def test_the_eigenvectors_of_hippo_are_useless_and_those_of_its_normal_part_perfect(
    figures: dict[str, Any],
) -> None:
    data = figures["eigenvectors"].data()
    for n, own, normal, error in zip(
        data["sizes"], data["own"], data["normal"], data["normal_error"], strict=True
    ):
        assert (own > 1e16) == (n >= 24)
        assert normal == pytest.approx(n)
        assert error < 1e-13
    # The condition that NumPy finds where float64 still can: Frobenius' is between it and n times it.
    A, _ = adder.hippo("legs", 8)
    spectral = float(torch.linalg.cond(torch.linalg.eig(A).eigenvectors))
    assert spectral < data["own"][data["sizes"].index(8)] < 8 * spectral


def test_a_step_size_stretches_the_kernel(figures: dict[str, Any]) -> None:
    data = figures["kernels"].data()
    fast, slow = data["s4"][1], data["s4"][2]  # dt = 0.01 and 0.003
    stretched = slow.unfold(0, 10, 10).mean(1)  # means over 0.03
    coarse = fast[: 3 * (len(fast) // 3)].unfold(0, 3, 3).mean(1)
    assert (stretched[:400] - coarse[:400])[2:].abs().max() < 0.05 * slow.abs().max()
    hum = data["s4d"][2] - data["s4"][2]
    assert hum.unfold(0, 100, 100).mean(1).abs().max() < 0.2 * hum.abs().max()


def test_both_trees_end_in_the_recurrence(figures: dict[str, Any]) -> None:
    data = figures["tree"].data()
    a = torch.tensor([float(a) for a, _ in data["tree"].pairs[0]])
    for name, rounds, additions in (("tree", 5, 11), ("doubling", 3, 17)):
        each = data[name]
        assert len(each.added) == rounds
        assert sum(len(added) for added in each.added) == additions
        products, h = zip(*each.pairs[-1], strict=True)
        assert torch.equal(torch.tensor([float(x) for x in h]), data["h"])
        assert torch.equal(torch.tensor([float(x) for x in products]), a.cumprod(0))


def test_the_operator_keeps_one_state_in_32(figures: dict[str, Any]) -> None:
    data = figures["kept"].data()
    for states, reference, operator in zip(
        data["states"], data["reference"], data["operator"], strict=True
    ):
        assert operator == states / 32
        assert reference > 2 * states


def test_s4_weighs_by_age_and_a_mamba_by_content(figures: dict[str, Any]) -> None:
    data = figures["attention"].data()
    s4, mamba = (torch.from_numpy(data[layer]) for layer in ("s4", "mamba"))
    for k in range(31):
        one_age = s4.diagonal(-k)
        assert torch.allclose(one_age, one_age[0])
    marked = int(mamba[-1].argmax())
    others = torch.cat([mamba[-1, :marked], mamba[-1, marked + 1 : -1]])
    assert mamba[-1, marked] > 3 * others.max()
    assert (mamba[marked:, marked] == mamba[marked:].nan_to_num().amax(1)).double().mean() > 0.8


def test_a_trained_mamba_moves_at_the_letter_behind_the_mark(figures: dict[str, Any]) -> None:
    data = figures["selection"].data()
    text = sys.modules["figures.selection"].TEXT
    marked = text.index(">") + 1
    seen = range(marked, marked + 4)  # by the short convolution
    assert data["steps"].argmax() in seen
    assert data["shares"].argmax() in seen
    assert data["shares"][seen].sum() > 0.5
    assert data["shares"].sum() == pytest.approx(1)
    assert text in read("lesson.md")
