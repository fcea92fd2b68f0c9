"""Hugging Face's Trainer on a LanguageModel as it is: losses, metrics, checkpoints, and what must raise."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5.15", reason="needs transformers from 5.15 on")
pytest.importorskip("accelerate", reason="needs accelerate")

from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from adder import LanguageModel, LanguageModelConfig, UsageError
from adder.models.decoder import Decoder

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing.:FutureWarning")
VOCABULARY = 20
Row = dict[str, list[int]]
Batch = dict[str, Tensor]


def build(**options: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "d_state": 4}
    return LanguageModel(LanguageModelConfig(**(sizes | options)))


def rows(count: int = 32) -> list[Row]:
    """Texts of 4 to 13 tokens that a model can learn: each token is the one before it plus three."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 14, (count,), generator=generator).tolist()
    starts = torch.randint(VOCABULARY, (count,), generator=generator).tolist()
    return [
        {"input_ids": [(start + 3 * i) % VOCABULARY for i in range(length)]}
        for start, length in zip(starts, lengths, strict=True)
    ]


def collator(side: str) -> Callable[[list[Row]], Batch]:
    def collate(batch: list[Row]) -> Batch:
        texts = [each["input_ids"] for each in batch]
        length = max(map(len, texts))

        def pad(values: list[list[int]], filler: int) -> Tensor:
            fill = [[filler] * (length - len(each)) for each in values]
            pairs = zip(values, fill, strict=True)
            return torch.tensor([b + a if side == "left" else a + b for a, b in pairs])

        ones = [[1] * len(each) for each in texts]
        return {
            "input_ids": pad(texts, 0),
            "attention_mask": pad(ones, 0),
            "labels": pad(texts, -100),
        }

    return collate


def trainer(folder: Path, model: Any = None, side: str = "right", **options: Any) -> Trainer:
    mine = {"compute_metrics", "train_dataset", "processing_class", "optimizers"} & options.keys()
    mine = {name: options.pop(name) for name in mine}
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 8,
        "logging_steps": 1,
        "save_steps": 4,
        "learning_rate": 1e-2,
        "seed": 1,
    }
    return Trainer(
        model=build() if model is None else model,
        args=TrainingArguments(str(folder), **(defaults | options)),
        eval_dataset=rows(10),
        data_collator=collator(side),
        **({"train_dataset": rows()} | mine),
    )


def losses(done: Trainer) -> Tensor:
    return torch.tensor([each["loss"] for each in done.state.log_history if "loss" in each])


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in model.parameters()]


def test_it_trains_the_same_however_rows_are_padded(tmp_path: Path) -> None:
    first, second = (
        trainer(tmp_path, build().double(), side, max_steps=40) for side in ("right", "left")
    )
    first.train()
    second.train()
    assert losses(first)[-1] < losses(first)[0] - 0.5
    assert torch.allclose(losses(first), losses(second), rtol=1e-5)  # the loss is float32


@pytest.mark.parametrize("side", ["right", "left"])
def test_evaluation_is_the_mean_over_batches(tmp_path: Path, side: str) -> None:
    model = build().eval()
    batches = [collator(side)(rows(10)[i : i + 4]) for i in (0, 4, 8)]
    with torch.no_grad():
        outputs = [model(**each) for each in batches]
    # As the Trainer weighs them: by the size of a batch, the last one's as any other's.
    expected = sum(len(b["labels"]) * o.loss for b, o in zip(batches, outputs, strict=True)) / 10
    without = trainer(tmp_path, model, side).evaluate()
    assert without["eval_loss"] == pytest.approx(float(expected), rel=1e-6)
    seen = {}

    def metrics(prediction: Any) -> dict[str, float]:
        seen["logits"], seen["labels"] = prediction
        return {"rows": float(len(prediction.predictions))}

    with_metrics = trainer(tmp_path, model, side, compute_metrics=metrics).evaluate()
    assert with_metrics["eval_rows"] == 10
    assert with_metrics["eval_loss"] == without["eval_loss"]
    for i, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        for j, mask in enumerate(batch["attention_mask"].bool()):
            got = torch.from_numpy(seen["logits"][4 * i + j])[: len(mask)][mask]
            assert torch.equal(got, output.logits[j][mask])


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_in_pieces_is_the_batch(tmp_path: Path, side: str) -> None:
    """By the tokens, not by the pieces: a piece of short rows counts less."""
    model = build().double()
    before, done = weights(model), []
    for size, pieces in ((8, 1), (2, 4)):
        model.load_state_dict(build().double().state_dict())
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        now = trainer(
            tmp_path,
            model,
            side,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=pieces,
            optimizers=(sgd, torch.optim.lr_scheduler.ConstantLR(sgd, 1.0)),
            max_steps=1,
            max_grad_norm=0,
        )
        now.train()
        done.append([one - other for one, other in zip(weights(model), before, strict=True)])
    # Where rows are padded on the left the Trainer counts one label a row too many.
    limit = 1e-6 if side == "right" else 0.1
    for whole, summed in zip(*done, strict=True):
        assert whole.abs().max() > 0
        assert (whole - summed).abs().max() <= limit * whole.abs().max()


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_checkpointing_layers_gives_the_same_bits(tmp_path: Path, name: str) -> None:
    if name not in TrainingArguments.__dataclass_fields__:
        pytest.skip("this transformers has no such argument")
    plain, saving = trainer(tmp_path), trainer(tmp_path, **{name: True})
    plain.train()
    saving.train()
    assert saving.model.backbone.checkpoint_layers
    assert all(map(torch.equal, weights(plain.model), weights(saving.model)))


def test_bfloat16_by_autocast(tmp_path: Path) -> None:
    seen = {}

    def metrics(prediction: Any) -> dict[str, float]:
        seen["dtype"] = prediction.predictions.dtype
        return {}

    plain, mixed = trainer(tmp_path), trainer(tmp_path, bf16=True, compute_metrics=metrics)
    plain.train()
    mixed.train()
    mixed.evaluate()
    assert seen["dtype"] == "float32"
    assert (losses(plain) - losses(mixed)).abs().max() < 4 * torch.finfo(torch.bfloat16).eps
    assert (losses(plain) - losses(mixed)).abs().max() > 0
    model = mixed.accelerator.unwrap_model(mixed.model, keep_fp32_wrapper=False)
    assert Decoder(model).refusal is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_holds_the_model_and_is_gone_on_from(tmp_path: Path, tied: bool) -> None:
    done = trainer(tmp_path, build(tie_embeddings=tied))
    done.train()
    folder = tmp_path / "checkpoint-4"
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) != tied
    resumed = trainer(tmp_path, build(tie_embeddings=tied))
    resumed.train(resume_from_checkpoint=str(folder))
    assert all(map(torch.equal, weights(done.model), weights(resumed.model)))
    assert (resumed.model.lm_head.weight is resumed.model.backbone.embedding.weight) == tied
    model = build(tie_embeddings=tied)
    model.load_state_dict(load_file(tmp_path / "checkpoint-8" / "model.safetensors"))
    model.save_pretrained(tmp_path / "model")
    again = LanguageModel.from_pretrained(tmp_path / "model")
    ids = torch.arange(10)[None]
    assert torch.equal(again(ids).logits, done.model(ids).logits)


def test_the_best_checkpoint_is_loaded(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    done = trainer(tmp_path, metric_for_best_model="loss", greater_is_better=True, **options)
    done.train()
    best = load_file(Path(done.state.best_model_checkpoint) / "model.safetensors")
    assert done.state.best_model_checkpoint.endswith("-4")
    assert all(torch.equal(best[name], each) for name, each in done.model.state_dict().items())


def test_adapters_are_trained_saved_and_gone_on_from(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", minversion="0.18", reason="needs peft from 0.18 on")
    targets = ["in_proj", "x_proj", "dt_proj", "out_proj"]

    def adapted() -> Any:
        config = peft.LoraConfig(
            r=2, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.1
        )
        return peft.get_peft_model(build(), config)

    done = trainer(tmp_path, adapted(), activation_checkpointing=True)
    done.train()
    assert losses(done)[-1] < losses(done)[0]
    assert not (tmp_path / "checkpoint-4" / "model.safetensors").exists()
    resumed = trainer(tmp_path, adapted(), activation_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(map(torch.equal, weights(done.model), weights(resumed.model)))


def test_a_tokenizer_is_saved_beside_the_weights(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), eos_token="w1", pad_token="w2"
    )
    trainer(tmp_path, processing_class=tokenizer, max_steps=4).train()
    assert (tmp_path / "checkpoint-4" / "tokenizer.json").exists()


def test_what_others_note_in_a_config_changes_nothing() -> None:
    model = build()
    config = replace(model.config)
    model.config.use_cache = False
    assert model.config == config
    assert "use_cache" not in model.config.to_dict()
    with pytest.raises(FrozenInstanceError):
        model.config.d_model = 32
    with pytest.raises(FrozenInstanceError):
        model.config.n_layers = 3


def test_a_slice_of_an_output_holds_tensors_alone() -> None:
    model, ids = build(), torch.arange(10)[None]
    output = model(ids, labels=ids)
    loss, logits, state = output
    assert state is None
    assert [each.shape for each in output[:]] == [loss.shape, logits.shape]
    assert output[1:][0] is logits
    assert output[-1] is None
    assert len(model(ids, state=model.initial_state(1))[1:]) == 2


@pytest.mark.parametrize(
    "asked",
    [
        {"every_n_layers": 2},
        {"offload": True},
        {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    ],
)
def test_another_way_of_checkpointing_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="checkpoints every layer, without reentrance"):
        build().activation_checkpointing_enable(**asked)
