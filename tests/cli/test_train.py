import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from adder.cli.main import main
from adder.training.checkpoint import checkpoint_step, list_checkpoints
from adder.training.presets import PRESETS
from adder.training.run_folder import open_run

SIZES = {"d-model": 16, "n-layer": 2, "d-state": 4, "batch-size": 2, "length": 16, "warmup": 2}
SMALL = [f"--{name}={value}" for name, value in SIZES.items()]
QUICK = [*SMALL, "--steps", "4", "--evaluate-every", "2", "--save-every", "2", "--device", "cpu"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 20, encoding="utf-8")
    return str(path)


@pytest.fixture
def refused(capsys):
    """refused(code, *arguments): the one line on standard error of a command that fails."""

    def run(code: int, *arguments: object) -> str:
        capsys.readouterr()
        assert main(["train", *map(str, arguments)]) == code
        streams = capsys.readouterr()
        lines = streams.err.strip().splitlines()
        assert streams.out == ""
        assert len(lines) == 1, lines
        return lines[0]

    return run


def test_train_and_resume(tmp_path, text, capsys):
    run = tmp_path / "run"
    assert main(["train", text, "--output", str(run), *QUICK]) == 0
    streams = capsys.readouterr()
    assert "finished at step 4" in streams.out
    assert f"adder generate {run} PROMPT" in streams.out
    assert "step 4/4: loss" in streams.err
    assert main(["train", "--resume", str(run), "--steps", "6", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["reason"], result["step"], result["run"]) == ("finished", 6, str(run))
    assert result["resume"] is None


def test_layers_that_run_again_give_the_same_weights_and_can_be_switched_off(tmp_path, text):
    plain, again = tmp_path / "plain", tmp_path / "again"
    assert main(["train", text, "--output", str(plain), *QUICK]) == 0
    assert main(["train", text, "--output", str(again), *QUICK, "--checkpoint-layers"]) == 0
    name = "checkpoints/step-00000004/model.safetensors"
    assert (plain / name).read_bytes() == (again / name).read_bytes()
    assert json.loads((again / "config.json").read_text())["training"]["checkpoint_layers"]
    options = ["--steps", "5", "--no-checkpoint-layers"]
    assert main(["train", "--resume", str(again), *options]) == 0


def test_options_override_the_preset(tmp_path, text):
    run = tmp_path / "run"
    options = ["--dt-rank", "3", "--vocabulary", "bytes", "--no-carry-state", "--beta2", "0.99"]
    assert main(["train", text, "--output", str(run), *QUICK, *options]) == 0
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["model"]["d_model"] == 16
    assert config["model"]["dt_rank"] == 3
    assert config["model"]["vocab_size"] == 256
    assert config["training"]["carry_state"] is False
    assert config["training"]["beta2"] == 0.99
    assert config["training"]["precision"] == "float32"
    assert config["source"]["size_in_bytes"] == 880


def test_default_text_and_default_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK]) == 0
    config = json.loads((tmp_path / "runs/python-docs-tiny/config.json").read_text("utf-8"))
    assert config["source"]["name"] == "python-docs"


def test_time_limit_of_a_preset(tmp_path, text, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "demo", dataclasses.replace(PRESETS["demo"], time_limit=0.0))
    options = ["--preset", "demo", "--output", str(tmp_path / "run"), *QUICK]
    assert main(["train", text, *options]) == 0
    assert "time limit at step 1" in capsys.readouterr().out


def test_learning_rate_of_a_resumed_run_can_fall(tmp_path, text):
    run = tmp_path / "run"
    assert main(["train", text, "--output", str(run), *QUICK]) == 0
    options = ["--steps", "6", "--learning-rate", "1e-5"]
    assert main(["train", "--resume", str(run), *options]) == 0
    last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert 1e-6 < last["learning_rate"] <= 1e-5


def test_time_limit_says_how_to_resume(tmp_path, text, capsys):
    run = tmp_path / "run"
    assert main(["train", text, "--output", str(run), *QUICK, "--time-limit", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["reason"] == "time limit"
    assert result["resume"] == f"adder train --resume {run}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_resume(tmp_path, text, number, code):
    run = tmp_path / "run"
    options = [*SMALL, "--steps", "1000000", "--output", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "adder", "train", text, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"saved; continue with: adder train --resume {run}" in out
    assert "Traceback" not in err
    newest = list_checkpoints(run)[-1]
    assert checkpoint_step(newest) == len(metrics.read_text(encoding="utf-8").splitlines())


def test_full_disk_is_one_line_and_the_run_stays_good(tmp_path, text):
    """A file size limit refuses writes as a full disk does, inside every library."""
    run = tmp_path / "run"
    script = (
        "import resource, sys\n"
        "from adder.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(['train', '--resume', sys.argv[4], '--steps', '8']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "train", text, "--output", str(run), *QUICK],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert main(["train", "--resume", str(run), "--steps", "5"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\0\1\2", "is binary"),
        (b"\xff\xfe\xfd", "is not UTF-8 text"),
        (b"short", "one window needs 17"),
        (b"enough characters to train", "validation part has 1 token"),
    ],
)
def test_unfit_source(tmp_path, refused, content, message):
    path = tmp_path / "source"
    path.write_bytes(content)
    options = [*QUICK, "--output", tmp_path / "run"]
    if b"enough" in content:
        options += ["--validation", "0.03"]
    assert message in refused(2, path, *options)
    assert not (tmp_path / "run").exists()


def test_missing_source_and_folder_without_text(tmp_path, refused):
    assert "no file or folder" in refused(2, tmp_path / "nowhere", "--output", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "holds no UTF-8" in refused(2, tmp_path / "empty", "--output", tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--d-model", "100000000"], "parameters"),
        (["--n-layer", "100000000"], "parameters"),
        (["--n-layer", "1000000"], "GiB are free"),
        (["--batch-size", "1000000000"], "GiB are free"),
        (["--d-state", "0"], "d_state"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--learning-rate", "nan"], "learning_rate must be a finite number"),
        (["--preset", "huge"], "no preset huge"),
        (["--precision", "float8"], "no precision float8"),
        (["--dt-rank", "many"], "--dt-rank must be"),
        (["--vocabulary", "nowhere.json"], "no vocabulary nowhere.json"),
        (["--device", "abacus"], "device abacus is not here"),
        (["--validation", "1"], "validation must be in [0, 1)"),
        (["--length", "100000"], "one window needs 100001"),
    ],
)
def test_impossible_options(tmp_path, text, refused, options, message):
    started = time.monotonic()
    line = refused(2, text, "--output", tmp_path / "run", *options)
    assert message in line
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 * 2**20


def test_output_that_is_taken(tmp_path, text, refused):
    run = tmp_path / "run"
    assert main(["train", text, "--output", str(run), *QUICK]) == 0
    line = refused(2, text, "--output", run, *QUICK)
    assert f"already holds a run: continue it with --resume {run}" in line


@pytest.mark.parametrize(("name", "typed"), [("-dash", "./-dash"), ("two words", "'two words'")])
def test_odd_name_of_a_run_can_be_typed_as_shown(
    tmp_path, text, capsys, refused, monkeypatch, name, typed
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", text, f"--output={name}", *QUICK]) == 0
    assert f"adder generate {typed} PROMPT" in capsys.readouterr().out
    assert f"--resume {typed}," in refused(2, text, f"--output={name}", *QUICK)


def test_resume_of_what_is_no_run(tmp_path, refused):
    assert "is no run" in refused(2, "--resume", tmp_path)
    assert "there is no folder" in refused(2, "--resume", tmp_path / "nowhere")


def test_options_that_a_resumed_run_has_already(tmp_path, refused):
    assert "--d-model cannot be given with --resume" in refused(
        2, "--resume", tmp_path, "--d-model", "8"
    )
    assert "SOURCE cannot be given" in refused(2, "text.txt", "--resume", tmp_path)


def test_damaged_checkpoint_names_the_good_one(tmp_path, text, refused):
    run = tmp_path / "run"
    assert main(["train", text, "--output", str(run), *QUICK]) == 0
    (run / "checkpoints/step-00000004/model.safetensors").write_bytes(b"cut")
    line = refused(1, "--resume", run)
    assert "model.safetensors is damaged: 3 bytes" in line
    assert "step-00000002" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_read_only_folder(tmp_path, text, refused):
    (tmp_path / "sealed").mkdir(mode=0o500)
    line = refused(1, text, "--output", tmp_path / "sealed" / "run", *QUICK)
    assert "Permission denied" in line


def test_folder_where_nothing_can_be_made(text, refused):
    line = refused(1, text, "--output", "/proc/run", *QUICK)
    assert "cannot make the run /proc/run" in line


def test_a_loss_that_is_not_finite(tmp_path, text, capsys):
    run = tmp_path / "run"
    options = [*QUICK, "--learning-rate", "1e30", "--clip", "0", "--warmup", "0"]
    assert main(["train", text, "--output", str(run), *options]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is not finite: first in" in line
    assert "backbone" in line
    assert "--learning-rate" in line


@pytest.mark.parametrize("model", ["mamba2", "s4", "s4d", "transformer", "lstm", "gru"])
def test_a_text_is_learnt_by_any_kind_of_model(tmp_path, text, as_json, model):
    run = tmp_path / "run"
    sizes = ["--d-model=16", "--n-layer=1", "--batch-size=2", "--length=16", "--device=cpu"]
    as_json("train", text, "-o", run, f"--model={model}", *sizes, "--steps=2")
    config = open_run(run).config.model
    assert config.layer == model
    if model == "mamba2":
        assert (config.d_state, config.headdim) == (128, 32)
    assert as_json("generate", run, "the ", "--max-tokens=3")["tokens"] == 3
    assert as_json("evaluate", run)["tokens"] > 0


def test_a_transformer_carries_no_state(tmp_path, text, refused):
    line = refused(2, text, "-o", tmp_path / "run", "--model=transformer", "--carry-state")
    assert "a transformer carries no state from step to step" in line
    assert not (tmp_path / "run").exists()
