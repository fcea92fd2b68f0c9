"""The harness's model: every number is the one of a direct computation, whatever shares a batch with it."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip(
    "lm_eval", minversion="0.4.10", reason="needs lm-evaluation-harness from 0.4.10 on"
)

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from adder import LanguageModel, LanguageModelConfig, Stream, UsageError
from adder.data.vocabulary import Bytes, Characters, Vocabulary
from adder.errors import AdderError
from adder.integrations import lm_eval as integration
from adder.integrations.lm_eval import AdderLM, scoring

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness and datasets warn of themselves
LETTERS = "\n abcdefgh.?"
CLOSE = {"rel": 0, "abs": 1e-9}  # float64


@cache
def build(**options: Any) -> LanguageModel:
    """A model that has opinions, and none that hangs on the last bit: its head is far from small."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(LETTERS), "d_model": 16, "n_layer": 2, "d_state": 4}
    config = LanguageModelConfig(tie_embeddings=False, **(sizes | options))
    model = LanguageModel(config).double().eval()
    with torch.no_grad():
        model.backbone.embedding.weight *= 50
        for block in model.backbone.blocks():
            block.mixer.out_proj.weight *= 10
        model.lm_head.weight *= 4
    return model


MODELS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba2": {"layer": "mamba2", "headdim": 8},
    "every step at least 0.01": {"layer": "mamba2", "headdim": 8, "dt_limit": (0.01, 1.0)},
}


def harness(model: LanguageModel, **options: Any) -> AdderLM:
    given = {"device": "cpu", "prefix": "\n"} | options
    return AdderLM(model, Characters(LETTERS), **given)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


@torch.no_grad()
def direct(model: LanguageModel, context: str, rest: str) -> tuple[float, bool]:
    vocabulary = Characters(LETTERS)
    ids = torch.tensor(vocabulary.encode(context + rest))[None]
    logits = model(ids).logits[0, len(context) - 1 : -1].double()
    targets = ids[0, len(context) :]
    found = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return float(found), bool((logits.argmax(-1) == targets).all())


def likeliest(model: LanguageModel, context: str, count: int) -> str:
    stream = Stream(model, Characters(LETTERS))
    stream.feed(context)
    return "".join(map(str, stream.generate(count, temperature=0.0)))


def questions(model: LanguageModel) -> list[tuple[str, str]]:
    """Contexts of many lengths, some of them shared, and continuations of many lengths."""
    long = "abc def." * 9  # the harness moves spaces at its end to the continuation
    pairs = [
        ("a", "b"),
        (long, "h"),
        ("a", "bcdefgh? a"),
        (long, "ab"),
        ("gh", "ab" * 20),
        (long, "c"),
    ]
    return [*pairs, ("bad", likeliest(model, "bad", 5)), ("a b", likeliest(model, "a b", 1))]


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_log_likelihood(options: dict[str, Any], batch_size: int) -> None:
    model = build(**options)
    pairs = questions(model)
    found = harness(model, batch_size=batch_size).loglikelihood(
        requests("loglikelihood", *pairs), disable_tqdm=True
    )
    for pair, (score, greedy) in zip(pairs, found, strict=True):
        expected, is_greedy = direct(model, *pair)
        assert score == pytest.approx(expected, **CLOSE)
        assert greedy == is_greedy
    assert [greedy for _, greedy in found[-2:]] == [True, True]


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_rolling_reads_the_whole_text_in_pieces(
    options: dict[str, Any], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of one to a dozen tokens: the state is carried on, nothing is cut off."""
    model = build(**options)
    texts = ["abc" * 70, "h", "fed cab. " * 5, "gag"]
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 4 * 3 * len(LETTERS))
    found = harness(model, batch_size=batch_size).loglikelihood_rolling(
        requests("loglikelihood_rolling", *((each,) for each in texts)), disable_tqdm=True
    )
    for text, score in zip(texts, found, strict=True):
        assert score == pytest.approx(direct(model, "\n", text)[0], **CLOSE)


def test_a_context_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = scoring.read
    monkeypatch.setattr(scoring, "read", lambda *given: seen.append(given[1]) or read(*given))
    pairs = [("abc", "d"), ("abc", "ef"), ("bad", "a"), ("abc", "g")]
    harness(build(), batch_size=4).loglikelihood(
        requests("loglikelihood", *pairs), disable_tqdm=True
    )
    assert len(seen) == 1
    assert len(seen[0]) == 2


def test_nothing_before_a_text_is_the_prefix() -> None:
    model = build()
    ask = requests("loglikelihood", ("", "abc"))
    found = harness(model).loglikelihood(ask, disable_tqdm=True)
    assert found[0][0] == pytest.approx(direct(model, "\n", "abc")[0], **CLOSE)
    with pytest.raises(UsageError, match="give one as prefix"):
        harness(model, prefix=None).loglikelihood(ask, disable_tqdm=True)
    ask = requests("loglikelihood", ("abc", "d"))
    found = harness(model, add_bos_token=True).loglikelihood(ask, disable_tqdm=True)
    assert found[0][0] == pytest.approx(direct(model, "\nabc", "d")[0], **CLOSE)


CONTEXTS = ["a", "bad cab", "abc def. " * 9, "h", "gag?"]


def written(model: LanguageModel, asked: dict[str, Any], **options: Any) -> list[str]:
    ask = requests("generate_until", *((each, dict(asked)) for each in CONTEXTS))
    return harness(model, **options).generate_until(ask, disable_tqdm=True)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_writing_stops_where_it_should(options: dict[str, Any], batch_size: int) -> None:
    """What a Stream writes alone: up to the stop string, and rows that end early leave the others as they are."""
    model, ends = build(**options), 0
    alone = [likeliest(model, context, 30) for context in CONTEXTS]
    until = [alone[0][7:9], alone[1][3:6], "", "zzz"]
    found = written(model, {"until": until, "max_gen_toks": 30}, batch_size=batch_size)
    for context, text in zip(CONTEXTS, found, strict=True):
        stream = Stream(model, Characters(LETTERS))
        stream.feed(context)
        stops = [each for each in until if each]
        assert text == "".join(map(str, stream.generate(30, temperature=0.0, stop=stops)))
        ends += len(text) < 30
    assert ends >= 2
    assert written(model, {"max_gen_toks": 30}, batch_size=batch_size) == alone
    assert written(model, {}, max_gen_toks=4) == [each[:4] for each in alone]
    assert written(model, {"max_gen_toks": 0}) == [""] * 5
    cold = {"do_sample": True, "temperature": 0, "top_k": 0, "max_new_tokens": 4}
    assert written(model, cold) == [each[:4] for each in alone]


def test_the_last_token_of_a_text_ends_it() -> None:
    model = build()
    alone = [likeliest(model, context, 30) for context in CONTEXTS]
    token = alone[0][5]
    assert written(model, {}, eot=token, max_gen_toks=30) == [
        each.split(token)[0] for each in alone
    ]


@pytest.mark.parametrize(
    "asked",
    [{"do_sample": True, "temperature": 0.9, "top_k": 5}, {"temperature": 1.2, "top_p": 0.8}],
)
def test_drawn_texts_hang_on_the_seed_alone(asked: dict[str, Any]) -> None:
    model = build()
    asked |= {"max_gen_toks": 20, "repetition_penalty": 1.1}
    first = written(model, asked, batch_size=8)
    assert written(model, asked, batch_size=1) == first
    assert written(model, asked, batch_size=2, seed=5) != first
    assert written(model, asked | {"do_sample": False}) != first
    twice = requests("generate_until", ("a", asked), ("a", asked))
    one, other = harness(model, batch_size=2).generate_until(twice, disable_tqdm=True)
    assert one != other


def test_what_a_task_asks_for_in_vain_is_named() -> None:
    for asked, match in [({"num_beams": 4}, "num_beams is 4"), ({"top_p": 2.0}, "top_p must be")]:
        with pytest.raises(UsageError, match=match):
            written(build(), asked)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Three tasks as files: choices, a text to write, and a text to read."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": q, "choices": ["bad", "cab h", "e"], "answer": i % 3, "text": q + " dad." * i}
        for i, q in enumerate(["abc?", "a", "def gag. bad?", "hag", "fab"])
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    common = f"""dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
    (folder / "choose.yaml").write_text(
        f"task: tiny_choose\noutput_type: multiple_choice\n{common}"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    (folder / "write.yaml").write_text(
        f"task: tiny_write\noutput_type: generate_until\n{common}"
        'doc_to_target: "{{choices[answer]}}"\nmetric_list: [{metric: exact_match}]\n'
        'generation_kwargs: {until: ["."], max_gen_toks: 12, do_sample: false}\n'
    )
    (folder / "read.yaml").write_text(
        f"task: tiny_read\noutput_type: loglikelihood_rolling\n{common.replace('question', 'missing')}"
        'doc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]\n'.replace(
            "{{missing}}", ""
        )
    )
    return folder


def saved(folder: Path, vocabulary: Vocabulary | None = None) -> Path:
    build().save_pretrained(folder)
    (vocabulary or Characters(LETTERS)).save(folder / "vocabulary.json")
    return folder


def test_tasks_run_from_files(tasks: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    results = []
    for batch_size in (1, 8):
        done = lm_eval.simple_evaluate(
            model="adder",
            model_args=f"pretrained={folder},dtype=float64,device=cpu,prefix=a",
            tasks=["tiny_choose", "tiny_write", "tiny_read"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            batch_size=batch_size,
            log_samples=True,
            bootstrap_iters=0,
        )
        results.append(done)
    one, eight = (each["results"] for each in results)
    for task, numbers in one.items():
        for name, value in numbers.items():
            assert eight[task][name] == (
                pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            )
    model = LanguageModel.from_pretrained(folder, torch.float64)
    right, bits, size = 0, 0.0, 0
    for row in map(json.loads, (tasks / "rows.jsonl").read_text().splitlines()):
        found = [direct(model, row["question"], " " + each)[0] for each in row["choices"]]
        right += found.index(max(found)) == row["answer"]
        bits -= direct(model, "a", row["text"])[0]
        size += len(row["text"].encode())
    assert one["tiny_choose"]["acc,none"] == pytest.approx(right / 5)
    assert one["tiny_read"]["bits_per_byte,none"] == pytest.approx(bits / size / 0.6931471805599453)
    for sample in results[1]["samples"]["tiny_write"]:
        assert (
            sample["resps"][0][0] == likeliest(model, sample["doc"]["question"], 12).split(".")[0]
        )


def test_the_command_line(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    folder = saved(tmp_path / "model")
    command = f"lm_eval --model adder --model_args pretrained={folder} --tasks tiny_choose"
    command += f" --include_path {tasks} --batch_size 4 --output_path {tmp_path / 'out'}"
    monkeypatch.setattr("sys.argv", command.split())
    runpy.run_module("adder.integrations.lm_eval", run_name="__main__")
    (report,) = (tmp_path / "out").rglob("results*.json")
    assert "acc,none" in json.loads(report.read_text())["results"]["tiny_choose"]


def test_special_tokens_of_a_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    arguments = {"device": "cpu"}
    assert AdderLM(str(folder), **arguments).eot_token_id is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    found = AdderLM(str(folder), **arguments)
    assert (found.prefix_token_id, found.eot_token_id) == (3, 3)
    tokens = {"bos_token": "a", "eos_token": {"content": "b"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    found = AdderLM(str(folder), **arguments)
    assert (found.prefix_token_id, found.eot_token_id) == tuple(Characters(LETTERS).encode("ab"))
    with pytest.raises(UsageError, match="eot is 'ab', which is 2 tokens"):
        AdderLM(str(folder), eot="ab", **arguments)


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    folder = saved(tmp_path / "model")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["in_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(LanguageModel.from_pretrained(folder), config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = AdderLM(str(folder), peft=str(tmp_path / "adapter"), device="cpu")
    ids = torch.arange(10)[None]
    assert torch.allclose(found.model(ids).logits, adapted(input_ids=ids).logits, atol=1e-4)


def test_errors_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, match in [
        ({"batch_size": "auto"}, "batch_size is 'auto'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "nowhere"}, "the device nowhere is not here"),
    ]:
        with pytest.raises(UsageError, match=match):
            harness(build(), **options)
    with pytest.raises(UsageError, match="the vocabulary has 256 tokens, and the model 12"):
        AdderLM(build(), Bytes())
    with pytest.raises(UsageError, match="give one beside it"):
        AdderLM(build())
    build().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="a model without a vocabulary"):
        AdderLM(str(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4.3")
    with pytest.raises(UsageError, match=r"lm_eval is 0\.4\.3, expected 0\.4\.10 or later"):
        integration._expect_library()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(AdderError, match="pip install lm_eval"):
        integration._expect_library()
