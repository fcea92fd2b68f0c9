"""The measuring loop: what its answers hold, and what it says of libraries that are not there."""

import json
import subprocess
import sys

import pytest
import torch

from adder.benchmark.contestants import PEER_WORKER, CannotMeasure, Process, Task
from adder.benchmark.model import Adder
from adder.benchmark.peers.models import SUBJECTS, Loop
from adder.benchmark.peers.serve import Measured, Subject

CONFIG = {"vocab_size": 32, "d_model": 32, "n_layer": 2}


def job(training: bool = False) -> dict:
    return {"config": CONFIG, "training": training, "decode_seconds": 0.2}


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def request_for(kind: str, context: int = 8, batch: int = 1, start: int = 0) -> dict:
    return {
        **{"kind": kind, "context": context, "batch": batch},
        **{"threads": 1, "start": start, "tokens": 5},
    }


def measured(kind: type[Subject], training: bool = False) -> Measured:
    return Measured(kind, {"precision": "float32", **job(training)})


@pytest.mark.parametrize("kind", [Adder, Loop])
def test_tokens_and_seconds_of_every_kind(kind):
    reader = measured(kind)
    for request, tokens in ((request_for("prefill"), 8), (request_for("decode", batch=3), 15)):
        answer = reader.answer(request)
        assert answer["tokens"] == [tokens]
        assert len(answer["seconds"]) == 1
        assert answer["seconds"][0] > 0
    assert measured(kind, training=True).answer(request_for("train"))["tokens"] == [8]


@pytest.mark.parametrize("name", ["mambapy", "loop"])
def test_reading_works_out_the_logits_of_the_last_token_alone(name):
    if name == "mambapy":
        pytest.importorskip("mambapy")
    subject = SUBJECTS[name](CONFIG, "float32")
    shapes, ids = [], torch.arange(8)[None]
    subject.model.register_forward_hook(lambda _, __, out: shapes.append(out.shape[1]))
    subject.read(ids, None)
    if name == "loop":
        subject.write(ids[:, :1], ids)
    assert set(shapes) == {1}
    torch.testing.assert_close(subject.model(ids, keep=1), subject.model(ids)[:, -1:])


def test_what_is_too_slow_to_be_run_in_vain_is_called_cold_once(monkeypatch):
    assert "cold" not in measured(Loop).answer(request_for("prefill"))
    monkeypatch.setattr("adder.benchmark.peers.serve.WARM_UP_BELOW", 0.0)
    reader = measured(Loop)
    assert reader.answer(request_for("prefill"))["cold"] is True
    assert "cold" not in reader.answer(request_for("prefill"))


def test_a_long_text_is_read_on_in_pieces(monkeypatch):
    monkeypatch.setattr("adder.benchmark.peers.serve.PIECE", 8)
    reader = measured(Adder)
    reader.answer(request_for("prefill", 8))
    answer = reader.answer(request_for("prefill", 27, start=8))
    assert answer["tokens"] == [8, 8, 3]
    whole = reader.subject.prepare(reader.ids(request_for("prefill", 27)))
    torch.testing.assert_close(reader.states[1, 27], whole)


def test_the_training_step_changes_the_weights():
    trained = measured(Adder, training=True)
    before = [each.clone() for each in trained.subject.model.parameters()]
    trained.answer(request_for("train"))
    after = list(trained.subject.model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_bytes_of_the_weights_count_a_tied_one_once():
    model = measured(Adder).subject
    parameters = model.model.config.parameter_count()
    assert model.weight_bytes() == 4 * parameters


def test_the_memory_of_a_measurement_is_its_own():
    """A large one first must not be seen in a small one that follows."""
    reader = measured(Loop)
    large = reader.answer(request_for("prefill", 512, batch=16))["peak_bytes"]
    small = reader.answer(request_for("prefill", 1))["peak_bytes"]
    if large is None:
        pytest.skip("this system does not tell the peak of a process")
    assert small < large / 2


def test_the_peer_worker_runs_without_adder():
    without = f"import sys; sys.modules['adder'] = None\n{PEER_WORKER}"
    loop = json.dumps({**job(), "subject": "loop", "precision": "float32"})
    command = [sys.executable, "-c", without, loop]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["transformers", "mambapy"])
def test_a_missing_library_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for module in ("transformers.models.mamba.modeling_mamba", "mambapy.mamba"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(Exception, match=f"{name}.* is not installed"):
        SUBJECTS[name].library()


def test_a_process_answers_and_says_how_it_died():
    process = Process("loop", "float32", job(), sys.executable)
    process.launch()
    try:
        process.start()
        assert process.facts["decodes_by"] == "reading again"
        sample = process.measure(Task("prefill", 8, 1), 0)
        assert sample.tokens == [8]
        with pytest.raises(CannotMeasure, match="KeyError"):
            process.measure(Task("dance", 8, 1), 0)
        assert process.process is not None
        process.process.kill()
        process.process.wait()
        with pytest.raises(CannotMeasure, match="killed"):
            process.measure(Task("prefill", 8, 1), 0)
    finally:
        process.close()


def test_a_python_that_is_not_there_is_told():
    process = Process("loop", "float32", job(), "no/python")
    with pytest.raises(CannotMeasure, match="no/python does not run"):
        process.launch()
    process.close()


def test_what_a_worker_prints_is_json_lines():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PEER_WORKER,
            json.dumps({**job(), "subject": "loop", "precision": "float32"}),
        ],
        input=json.dumps(request_for("prefill")) + "\n",
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    ready, answer = map(json.loads, done.stdout.splitlines())
    assert ready["ready"] is True
    assert answer["tokens"] == [8]
