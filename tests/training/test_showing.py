"""What a run shows: the bar, the lines, the picture and the TensorBoard events."""

import io
import struct

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from adder.training import progress
from adder.training.events import EventsFile
from adder.training.plot import plot_loss
from adder.training.progress import Bar, Lines, Rate, Report, Silent, make_display

REPORT = Report(step=3, loss=1.2345, per_second=12345.6, seconds_left=3725.0, validation_loss=1.5)


def test_bar_shows_loss_speed_and_time_left():
    screen = io.StringIO()
    bar = Bar(10, Console(file=screen, force_terminal=True, width=120))
    bar.update(REPORT)
    bar.say("a line [not markup]")
    bar.close()
    shown = screen.getvalue()
    assert "step 3/10" in shown
    assert "loss 1.234, valid 1.500, 12,346 tokens/s, 1:02:05 left" in shown
    assert "a line [not markup]" in shown


def test_lines_come_every_few_seconds_and_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines(10)
    for step in range(1, 11):
        now[0] += 2.0
        lines.update(Report(step, 1.0, 10.0, 61.0))
    shown = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in shown] == [
        "step 3/10",
        "step 6/10",
        "step 9/10",
        "step 10/10",
    ]
    assert shown[0] == "step 3/10: loss 1.000, 10 tokens/s, 1:01 left"


def test_bar_fits_a_narrow_terminal():
    screen = io.StringIO()
    bar = Bar(200_000, Console(file=screen, force_terminal=True, width=80))
    bar.update(REPORT)
    bar.close()
    assert "loss 1.234, valid 1.500, 12,346 tokens/s, 1:02:05 left" in screen.getvalue()
    assert "step 3/200000 " in screen.getvalue()
    assert "…" not in screen.getvalue()


def test_bar_of_a_classifier_fits_too_and_shows_accuracy():
    screen = io.StringIO()
    bar = Bar(200_000, Console(file=screen, force_terminal=True, width=80))
    bar.update(Report(3, 1.2345, 12345.6, 3725.0, 1.5, 0.9123, 0.8999, "sequences"))
    bar.close()
    expected = "loss 1.234, right 91.2%, valid 90.0%, 12,346 seq/s, 1:02:05 left"
    assert expected in screen.getvalue()
    assert "step 3/200000 " in screen.getvalue()
    assert "…" not in screen.getvalue()
    assert "valid" not in str(Report(3, 1.2, 10.0, 1.0, None, 0.5))
    assert "10 tokens/s" in str(Report(3, 1.2, 10.0, 1.0, None, 0.5))


@pytest.mark.parametrize(
    ("terminal", "name", "kind"),
    [(True, "xterm", Bar), (True, "dumb", Lines), (False, "xterm", Lines)],
)
def test_a_terminal_gets_a_bar(monkeypatch, terminal, name, kind):
    monkeypatch.setenv("TERM", name)
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: terminal)
    monkeypatch.setattr(progress.sys, "stderr", screen)
    display = make_display(10)
    display.close()
    assert isinstance(display, kind)


def test_closed_standard_error_is_shown_nothing(monkeypatch):
    monkeypatch.setattr(progress.sys, "stderr", None)
    assert isinstance(make_display(10), Silent)


def test_rate_is_of_the_last_steps():
    rate = Rate(steps=2)
    assert rate.add(100, 1.0) == 100
    rate.add(100, 0.5)
    assert rate.add(100, 0.5) == 200


def test_picture(tmp_path):
    plot_loss(tmp_path, [])
    assert not (tmp_path / "loss.png").exists()
    plot_loss(
        tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "validation_loss": 1.5}]
    )
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", [r"a $\nothing$ b", "日本"])
def test_picture_of_a_run_with_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    plot_loss(tmp_path / name, [{"step": 1, "loss": 2.0}])
    assert (tmp_path / name / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_events_hold_every_scalar(tmp_path):
    events = EventsFile(tmp_path, step=4)
    events.append(5, {"loss": 2.5})
    events.flush()
    events.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert found[0].file_version == "brain.Event:2"
    assert (found[1].step, found[1].session_log.status) == (5, 1)
    value = found[2].summary.value[0]
    assert (found[2].step, value.tag, value.simple_value) == (5, "loss", 2.5)
