"""Text as a task: windows of tokens to predict, and a validation part at the end."""

from typing import Any

from torch import nn

from adder.data.text import STANDARD_INPUT, Text, read_source, split_by_position
from adder.data.vocabulary import Vocabulary
from adder.data.windows import CarriedWindows, RandomWindows, Window
from adder.errors import UsageError
from adder.models.language_model import LanguageModel
from adder.training.config import TrainingConfig
from adder.training.evaluation import evaluate_text
from adder.training.learner import text_loss
from adder.training.run_folder import SOURCE_COPY, Run
from adder.training.synthetic import HELD_OUT, run_synthetic
from adder.training.task import Task

_TOKENS_PER_ROW = 2048
_MOST_ROWS = 16
_WINDOW = 512


class TextTask(Task):
    """The next token of a text.

    Raises:
        UsageError: the text is too short for the training, or for its validation part.
    """

    unit = "tokens"
    loss_unit = "nats per token"
    loss = staticmethod(text_loss)

    def __init__(self, text: Text, vocabulary: Vocabulary, training: TrainingConfig) -> None:
        first, second = split_by_position(text.text, training.validation)
        if training.validation and not second:
            raise UsageError(
                f"the source is too short to split: {training.validation:g} of its "
                f"{len(text.text)} characters is nothing; give a longer one, or --validation 0"
            )
        self.text = text
        self.vocabulary = vocabulary
        self.training = training
        self.units_per_step = training.tokens_per_step
        self.longest = training.length
        kind = CarriedWindows if training.carry_state else RandomWindows
        ids = vocabulary.encode(first)
        self.windows = kind(ids, training.rows, training.length, training.seed)
        self.validation_ids = vocabulary.encode(second)
        self.validation_bytes = len(second.encode("utf-8"))
        if training.validation and self.validation_ids.size < 2:
            raise UsageError(
                f"the validation part has {self.validation_ids.size} token, at least 2 are needed: "
                "give a longer source, or --validation 0"
            )

    def batch(self, step: int) -> Window:
        return self.windows.window(step)

    @property
    def validates(self) -> bool:
        return self.validation_ids.size >= 2

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, LanguageModel)
        ids = self.validation_ids[: self.training.evaluation_tokens + 1]
        rows = min(_MOST_ROWS, max(1, (ids.size - 1) // _TOKENS_PER_ROW))
        result = evaluate_text(model, ids, length=_WINDOW, rows=rows)
        bytes_per_token = self.validation_bytes / self.validation_ids.size
        return {
            "validation_loss": result.loss,
            "validation_bits_per_byte": result.bits_per(result.tokens * bytes_per_token),
            "tokens_evaluated": result.tokens,
        }

    def summary(self) -> str:
        return f"{self.text.size_in_bytes:,} bytes, {self.vocabulary.size} {self.vocabulary.kind}"

    def step_summary(self) -> str:
        return f"{self.training.rows} x {self.training.length} tokens"


def held_out_text(run: Run) -> tuple[str, str]:
    """The part of a run's own text that it was not trained on, and what to call it: of a task, a row drawn for this.

    Raises:
        UsageError: the text is gone or has changed, or the run was trained on all of it.
    """
    source = run_synthetic(run.config.source, run.path)
    if source is not None:
        assert isinstance(run.training, TrainingConfig)
        ids, _ = source.batch(1, run.training.seed, HELD_OUT, run.training.length)
        return f"a row of {source.name}", source.vocabulary.decode(ids[0].numpy())
    own = read_run_source(run)
    text = split_by_position(own.text, run.training.validation)[1]
    if not text:
        raise UsageError(f"{run.path} was trained on its whole text: give a SOURCE to evaluate on")
    return f"the validation part of {own.name}", text


def source_record(text: Text) -> dict[str, Any]:
    """What config.json says of a text."""
    return {
        "name": SOURCE_COPY if text.name == STANDARD_INPUT else text.name,
        "size_in_bytes": text.size_in_bytes,
        "sha256": text.sha256,
    }


def read_run_source(run: Run) -> Text:
    """The text a run was made from; UsageError where it is gone or has changed since."""
    record = run.config.source
    name = str(record.get("name"))
    try:
        text = read_source(str(run.path / name) if name == SOURCE_COPY else name)
    except UsageError as error:
        raise UsageError(f"the text of the run {run.path} is gone: {error}") from None
    if text.sha256 != record.get("sha256"):
        raise UsageError(
            f"the text of the run {run.path}, {name}, has changed since the run began: "
            "put the old one back"
        )
    return text
