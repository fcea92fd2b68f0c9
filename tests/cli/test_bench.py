"""`adder bench cpu` on a tiny model: what its JSON holds, its errors, and an interrupt. Never how fast."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adder.cli.main import main

TINY = ["bench", "cpu", "--quick", "--threads=1", "--rounds=1", "--limit=30"]
SMALL = [*TINY, "--context=8", "--precision=float32"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[dict, Path]:
    """The JSON of reading and writing with the loop beside it, and the folder with the figure."""
    folder = tmp_path_factory.mktemp("bench")
    files = ["--json", str(folder / "b.json"), "--figure", str(folder / "b.png")]
    assert main([*SMALL, "--only=prefill", "--only=decode", *files]) == 0
    return json.loads((folder / "b.json").read_text(encoding="utf-8")), folder


def test_the_json_holds_every_measurement(made):
    facts, folder = made
    assert facts["complete"] is True
    assert facts["plan"]["contexts"] == [8]
    rows = {(row["task"], row["batch"], row["subject"]): row for row in facts["models"]}
    tasks = [("prefill", 1), ("decode", 1), ("decode", 16)]
    assert rows.keys() >= {(*task, name) for task in tasks for name in ("adder", "loop")}
    for row in rows.values():
        assert row["low"] <= row["tokens_per_second"] <= row["high"]
        assert len(row["samples"]) == 1
    compared = {(row["task"], row["batch"]) for row in facts["ratios"] if row["peer"] == "loop"}
    assert compared == set(tasks)
    assert (folder / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_is_not_there_is_one_line(capfd, tmp_path):
    """A Python that has neither library."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    assert main([*SMALL, "--only=peers", "--only=train", f"--peer-python={python}"]) == 0
    page = capfd.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    for name in ("transformers", "mambapy", "loop"):
        assert f"  {name} float32: its process ended with 1: ModuleNotFoundError" in page


def test_limits_alone_and_json_on_standard_output(capfd):
    assert main([*TINY, "--only=limits", "--json=-"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert {row["limit"] for row in facts["limits"]} == {"bandwidth", "float32", "bfloat16"}
    assert facts["models"] == facts["operators"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*TINY, "--only=speed"], "--only speed: choose adder, limits"),
        ([*TINY, "--precision=int3"], "--precision int3: choose float32"),
        ([*TINY, "--model-size=7b"], "--model-size 7b: choose 130m, mamba2-130m or tiny"),
        ([*TINY, "--peer-python=no/python"], "--peer-python no/python: there is no such program"),
        ([*TINY, "--gguf=x.gguf"], "--llama-bench and --gguf go together"),
        (
            [*TINY, f"--llama-bench={sys.executable}", "--gguf=no.gguf"],
            "--gguf no.gguf: there is no such file",
        ),
        ([*TINY, "--json=no/folder.json"], "--json no/folder.json: there is no folder no"),
        ([*TINY, "--figure=."], "--figure . is a folder"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_measured(arguments, words, line_of):
    assert words in line_of(2, *arguments)


def test_a_llama_bench_that_is_none_is_told(capfd, tmp_path):
    fake, gguf = tmp_path / "llama-bench", tmp_path / "m-q4_0.gguf"
    fake.write_text(
        "#!/bin/sh\necho error: unknown model architecture >&2\nexit 3\n", encoding="utf-8"
    )
    fake.chmod(0o755)
    gguf.write_bytes(b"GGUF")
    files = [f"--llama-bench={fake}", f"--gguf={gguf}"]
    assert main([*SMALL, "--only=peers", "--only=prefill", *files]) == 0
    page = " ".join(capfd.readouterr().out.split())
    assert "llama.cpp Q4_0: llama-bench ended with 3 and said: error: unknown model" in page


def test_llama_bench_is_read(capfd, tmp_path):
    """As its -o json prints, one object for each test."""
    fake, gguf = tmp_path / "llama-bench", tmp_path / "m.gguf"
    row = {"model_type": "mamba 0.1B Q4_K - Medium", "model_size": 88, "samples_ts": [123.5]}
    row["model_n_params"] = 129_135_360
    fake.write_text(f"#!/bin/sh\necho '{json.dumps([row])}'\n", encoding="utf-8")
    fake.chmod(0o755)
    gguf.write_bytes(b"GGUF")
    files = [f"--llama-bench={fake}", f"--gguf={gguf}", "--json=-"]
    assert main([*SMALL, "--only=peers", "--only=prefill", *files]) == 0
    facts = json.loads(capfd.readouterr().out)
    (found,) = [row for row in facts["models"] if row["subject"] == "llama.cpp"]
    assert found["precision"] == "Q4_K_M"
    assert found["tokens_per_second"] == pytest.approx(123.5)
    assert found["limit_tokens_per_second"] is None
    (why,) = [row["why"] for row in facts["left_out"] if row["subject"] == "llama.cpp"]
    assert why == "has 129.1 M parameters and adder's 0.7 M: not compared"


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    file = tmp_path / "b.json"
    process = subprocess.Popen(
        [
            *[sys.executable, "-m", "adder", *SMALL, "--only=limits", "--only=prefill"],
            *["--rounds=100000", "--json", str(file)],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not file.exists():  # it is written when the limits are known
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "adder: interrupted"
    facts = json.loads(file.read_text(encoding="utf-8"))
    assert facts["complete"] is False
    assert len(facts["limits"]) == 3
    assert "interrupted" in out
