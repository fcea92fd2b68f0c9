import re

import numpy as np
import pytest

import adder
from adder.cli.explain_figures import tokens_of
from adder.cli.explain_page import pieces, visible
from adder.cli.explain_report import _shown
from adder.cli.main import main
from adder.data.text import split_by_position
from adder.data.vocabulary import Bytes
from adder.training.opened import open_model

from ..pages import check
from .conftest import SMALL

TEXT = "<script>alert(1)</script> & the [bold]fox[/bold] ran\nover\x07 2 dogs\n" * 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind that can be explained, and one that cannot, on a text that pages and tables must not obey."""
    folder = tmp_path_factory.mktemp("explained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    for kind in ("mamba", "mamba2", "s4", "s4d", "gru"):
        small = [option for option in SMALL if kind != "gru" or "d-state" not in option]
        sizes = [*small, "--n-layer=2", "--length=16", "--steps=1", f"--model={kind}"]
        assert main(["train", str(folder / "text.txt"), "-o", str(folder / kind), *sizes]) == 0
    return folder


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "s4", "s4d"])
def test_json_holds_what_the_library_says(runs, kind, as_json):
    values = as_json("explain", runs / kind, "--tokens", 30, "--layer", 0, "--token", 20)
    model, vocabulary = open_model(runs / kind).reader()
    ids = vocabulary.encode(split_by_position(TEXT, 0.1)[1])
    seen = adder.explain(model, ids[:30], layer=0, token=20)
    assert values["kind"] == kind
    assert values["ids"] == ids[:30].tolist()
    assert values["tokens_of_text"] == len(ids)
    assert "".join(values["tokens"]) == vocabulary.decode(ids[:30])
    assert (values["layer"], values["token"], values["output"]) == (0, 20, None)
    assert "the validation part of" in values["text"]
    for told, memory in zip(values["layers"], seen.layers, strict=True):
        np.testing.assert_allclose(told["horizons"], memory.horizons(), rtol=1e-6)
        np.testing.assert_allclose(told["horizons_to_1_percent"], memory.horizons(0.01), rtol=1e-6)
        assert told["mean_step"] == pytest.approx(memory.mean_step)
        np.testing.assert_allclose(told["shares"], memory.shares, atol=1e-6)
        assert len(told["shares"]) == 21
        np.testing.assert_allclose(told["kept"], memory.kept, atol=1e-6)
        assert told["held"] == pytest.approx(memory.held)
        assert (told["steps"] is None) == (kind in ("s4", "s4d"))
    assert len(values["layers"]) == 2


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "s4", "s4d"])
def test_page_is_whole_and_asks_nothing_of_a_network(runs, kind, tmp_path, capsys):
    path = tmp_path / "page.html"
    assert main(["explain", str(runs / kind), TEXT[:60], "-o", str(path)]) == 0
    assert f"written to {path}" in capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    page = check(text)
    selective = kind in ("mamba", "mamba2")
    # Horizons, parts read, parts held, channels, and kernels; each for wide and narrow windows.
    assert len(page.named("svg")) == 2 * (4 + (not selective))
    assert len(page.texts) == 2 + selective
    expected = TEXT[:60].replace("\x07", "\ufffd").replace("\n", "\u21b5\n")
    assert all(drawn == expected for drawn in page.texts)
    assert len(page.named("rect")) == 2 * 2 * 60


def test_tokens_are_tinted_by_their_step(runs, tmp_path):
    path = tmp_path / "page.html"
    arguments = [
        "explain",
        str(runs / "mamba"),
        TEXT[:40],
        "-o",
        str(path),
        "--layer=0",
        "--token=9",
    ]
    assert main(arguments) == 0
    spans = check(path.read_text(encoding="utf-8")).tokens()
    model, vocabulary = open_model(runs / "mamba").reader()
    memory = adder.explain(model, vocabulary.encode(TEXT[:40]), token=9).layers[0]
    steps = memory.steps
    tints = [float(span["style"].removeprefix("--a:")) for span in spans]
    expected = 0.85 * (steps - steps.min()) / (steps.max() - steps.min())
    np.testing.assert_allclose(tints[:40], expected, atol=2e-3)
    np.testing.assert_allclose(tints[40:50], 0.85 * memory.shares / memory.shares.max(), atol=2e-3)
    np.testing.assert_allclose(tints[50:], 0.85 * memory.kept, atol=2e-3)
    assert [span.get("class") for span in spans].index("now") == 9
    assert len(spans) == 60
    assert f"{steps[5]:.3g}" in spans[5]["title"]


def test_a_table_of_80_columns_in_a_pipe(runs, capsys):
    capsys.readouterr()
    assert main(["explain", str(runs / "mamba"), TEXT[:60]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mamba, 2 layers, read 60 tokens of the text given"
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert "\x07" not in "".join(lines)
    assert "the text tinted token by token needs a terminal with colours; --html draws it" in lines
    assert "without the skip D u[t]" in " ".join(" ".join(lines).split())
    (held,) = [line for line in lines if line.startswith("held: ")]
    assert held.endswith("after token 59, of 4")
    model, vocabulary = open_model(runs / "mamba").reader()
    seen = adder.explain(model, vocabulary.encode(TEXT[:60]))
    for index, memory in enumerate(seen.layers):
        (line,) = [line for line in lines if re.match(rf"\s*{index} ", line)]
        assert tokens_of(memory.horizons(quantiles=(0.5,))[0]) in line
        assert f"{memory.mean_step:.3g}" in line
        assert f" {tokens_of(memory.held)} " in line
        position, share = memory.most(1)[0]
        assert f"{visible(TEXT[position])} {position} {share:.0%}" in line


def test_text_may_be_a_file_or_standard_input(runs, tmp_path, as_json, monkeypatch):
    import io
    import types

    path = tmp_path / "some.txt"
    path.write_text("the fox\n", encoding="utf-8")
    values = as_json("explain", runs / "mamba", path)
    assert "".join(values["tokens"]) == "the fox\n"
    assert values["text"] == str(path)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(b"2 dogs")))
    values = as_json("explain", runs / "mamba", "-")
    assert "".join(values["tokens"]) == "2 dogs"


def test_what_is_there_is_replaced_only_by_force(runs, tmp_path, line_of):
    path = tmp_path / "page.html"
    path.write_text("mine", encoding="utf-8")
    command = ["explain", runs / "mamba", "the fox", "-o", path]
    assert f"--html {path} is there already" in line_of(2, *command)
    assert path.read_text(encoding="utf-8") == "mine"
    assert main([*map(str, command), "--force"]) == 0
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_refusals(runs, tmp_path, line_of, sound_run):
    mamba = runs / "mamba"
    for arguments, message in [
        ((runs / "gru", "the fox"), "the model's layer is gru, expected one with a state space"),
        ((mamba, "the fox", "--layer", 2), "layer is 2, expected a whole number from -2 to 1"),
        ((mamba, "the fox", "--token", 7), "token is 7, expected a whole number from -7 to 6"),
        ((mamba, "t"), "the text given has 1 token, at least 2 are needed"),
        ((mamba, ""), "the text is empty"),
        ((mamba, "the Z"), "the vocabulary lacks"),
        (
            (mamba, "the fox", "--last", 8),
            "there are 7 tokens up to token 6: give a smaller one, or a longer",
        ),
        ((mamba, TEXT, "--tokens=9", "--last", 10), "give a smaller one, or a larger --tokens"),
        (
            (mamba, "the fox", "--token=3", "--last=5"),
            "--last is 5, and there are 4 tokens up to token 3",
        ),
        ((mamba, "the fox", "--force"), "--force needs --html"),
        ((mamba, "the fox", "-o", tmp_path), "is a folder"),
        ((mamba, "the fox", "-o", tmp_path / "no" / "x.html"), "there is no folder"),
        ((sound_run, "the fox"), "is a classifier"),
    ]:
        assert message in line_of(2, "explain", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_no_run_needs_a_text(runs, tmp_path, line_of, as_json):
    model, vocabulary = open_model(runs / "mamba").reader()
    model.save_pretrained(tmp_path / "model")
    vocabulary.save(tmp_path / "model" / "vocabulary.json")
    assert "give a TEXT or a file" in line_of(2, "explain", tmp_path / "model")
    assert as_json("explain", tmp_path / "model", "the fox")["step"] is None


def test_a_horizon_without_an_end(runs, tmp_path, as_json, capsys):
    model, vocabulary = open_model(runs / "mamba").reader()
    for block in model.backbone.blocks():
        block.mixer.A_log.data[:, :2] = -1e4  # A = 0 in half of the state
    model.save_pretrained(tmp_path / "model")
    vocabulary.save(tmp_path / "model" / "vocabulary.json")
    path = tmp_path / "page.html"
    command = ["explain", str(tmp_path / "model"), "the fox"]
    assert main([*command, "-o", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "A line to the right end is of numbers that never fade." in check(text).words
    quantiles = as_json(*command)["layers"][0]["horizons"]
    assert quantiles[0] > 0
    assert quantiles[3:] == [None, None]
    for block in model.backbone.blocks():
        block.mixer.A_log.data[:] = -1e4
    model.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert main([*command, "-o", str(path), "--force"]) == 0
    assert capsys.readouterr().out.count("never") == 4
    page = check(path.read_text(encoding="utf-8"))
    (drawn, _) = [each for each in page.named("svg") if "faded to 1/e" in each["aria-label"]]
    assert drawn["aria-label"].endswith("medians of the layers from 0 on: never, never.")


def test_words_for_tokens_and_numbers():
    ids = [ord("a"), *"é".encode(), *b"\n", 0xC3]
    assert list(pieces(Bytes(), ids)) == ["a", "", "é", "\n", "\ufffd"]
    assert [visible(each) for each in ("a", "", "\n", "\x1b[", "'")] == [
        *("'a'", "(part)", "'\\n'", "'\\x1b['", "'''"),
    ]
    assert [visible(each) for each in ("\xa0", "a\u200db", "\u202e", "\u0378", "\ud800")] == [
        *("'\\xa0'", "'a\\u200db'", "'\\u202e'", "'\u0378'", "'\\ud800'"),
    ]
    for character in ("a", "\t", "\xa0", "\u3000", "\u200d", "\xad", "\u0378"):
        assert _shown(character) == character
    assert [_shown(each) for each in ("\x07", "\x1b", "\r", "\ud800")] == ["?"] * 4
    assert [tokens_of(x) for x in (0.1234, 12.34, 1234.5, float("inf"))] == [
        *("0.123", "12.3", "1,234", "never"),
    ]
    assert [tokens_of(x) for x in (5, 99.94, 99.96)] == ["5.00", "99.9", "100"]


def test_the_last_tokens_are_shown_alone(runs, tmp_path, capsys):
    path = tmp_path / "page.html"
    command = ["explain", str(runs / "s4"), TEXT[:60], "--token=40", "--last=10", "--html"]
    assert main([*command, str(path)]) == 0
    page = check(path.read_text(encoding="utf-8"))
    expected = TEXT[31:60].replace("\x07", "\ufffd").replace("\n", "\u21b5\n")
    assert page.texts == [expected, expected]
    assert len(page.named("rect")) == 2 * 2 * 10
    assert "tinted" not in capsys.readouterr().out  # the page is there: nothing is to be said of it


def test_a_long_beginning_that_was_forgotten_is_not_drawn(runs, tmp_path, as_json):
    path = tmp_path / "page.html"
    model, vocabulary = open_model(runs / "mamba").reader()
    for block in model.backbone.blocks():
        block.mixer.dt_proj.bias.data += 4  # steps so long that little stays
    model.save_pretrained(tmp_path / "model")
    vocabulary.save(tmp_path / "model" / "vocabulary.json")
    values = as_json("explain", tmp_path / "model", TEXT[:300], "--html", path)
    page = check(path.read_text(encoding="utf-8"))
    for drawn, key in zip(page.texts[1:], ("shares", "kept"), strict=True):
        parts = np.array(values["layers"][1][key])
        said = int(drawn.split(" ", 1)[0])
        assert 200 < said < 300
        assert parts[:said].sum() <= 0.05 * parts.sum() < parts[: said + 1].sum()
        assert drawn.startswith(
            f"{said} tokens before, together 5% of the sum at most\n{TEXT[said]}"
        )
    assert len(page.tokens()) == 300 + sum(
        300 - int(each.split(" ", 1)[0]) for each in page.texts[1:]
    )


def test_fewer_tokens_than_the_memory_holds_are_said_to_be(runs, tmp_path, capsys):
    capsys.readouterr()
    path = tmp_path / "page.html"
    command = ["explain", str(runs / "s4"), "the fox ran over", "--tokens=7", "--html", str(path)]
    assert main(command) == 0
    words = (
        "The 7 tokens that were read are fewer than the median horizon of layers 0, 1: what they forget is not seen "
        "in them."
    )
    assert words in " ".join(capsys.readouterr().out.split())
    assert words in check(path.read_text(encoding="utf-8")).words


@pytest.mark.parametrize(("kind", "what"), [("mamba", "Delta"), ("s4", "part held")])
def test_a_terminal_with_colours_tints_the_text(runs, kind, what, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    capsys.readouterr()
    assert main(["explain", str(runs / kind), TEXT[:60], "--token=58"]) == 0
    drawn = capsys.readouterr().out.split(f"layer 1, {what}:")[1]
    assert "\x1b[30;48;" in drawn  # black on a tint
    assert "tinted" not in drawn
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn).split("\n", 1)[1]
    shown = TEXT[:60].replace("\x07", "?").replace("\n", "\u21b5\n")
    assert plain.replace("\n", "") == shown.replace("\n", "")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["explain", str(runs / kind), TEXT[:60]]) == 0
    assert "needs a terminal with colours" in capsys.readouterr().out


def test_a_terminal_that_cannot_draw_gets_ascii(runs, monkeypatch):
    import io

    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert main(["explain", str(runs / "mamba"), "the fox"]) == 0
        stream.flush()
        text = raw.getvalue().decode("ascii")
    assert "+---" in text
    assert "'x' 6" in text
