"""docs/finetuning.md is true: its snippets run, one after the other, in a folder with a model and a task."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft", reason="needs peft")
pytest.importorskip("accelerate", reason="needs accelerate")
pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")

from adder import LanguageModel, LanguageModelConfig
from adder.data.vocabulary import Characters
from adder.models.decoder import Decoder

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"
LETTERS = "\nabcdefghijklmnopqrstuvwxyz"


@pytest.mark.filterwarnings("ignore")
def test_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = LanguageModelConfig(vocab_size=len(LETTERS), d_model=16, n_layer=1, d_state=4)
    LanguageModel(config).save_pretrained("model")
    for folder in ("model", "tuned", "tasks"):
        Path(folder).mkdir(exist_ok=True)
        Characters(LETTERS).save(Path(folder) / "vocabulary.json")
    row = {"question": "abc", "choices": ["d", "x"], "answer": 0}
    Path("tasks/rows.jsonl").write_text(json.dumps(row))
    Path("tasks/my_task.yaml").write_text(
        "task: my_task\noutput_type: multiple_choice\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'tasks' / 'rows.jsonl'}}}}}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
        'target_delimiter: ""\nmetric_list: [{metric: acc}]\n'
    )
    names: dict[str, object] = {}
    text = PAGE.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        source = "\n" * text.count("\n", 0, found.start(1)) + found[1]
        exec(compile(source, str(PAGE), "exec"), names)
    assert Decoder(names["merged"]).refusal is None
    assert "acc,none" in names["done"]["results"]["my_task"]
