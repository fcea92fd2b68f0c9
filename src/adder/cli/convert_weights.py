"""`adder convert --weights`: a language model with int8 or int4 weights, and what that costs in perplexity."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adder.cli.convert_format import new_folder
from adder.cli.threads import use_threads
from adder.errors import UsageError

if TYPE_CHECKING:
    from adder.data.vocabulary import Vocabulary
    from adder.models.language_model import LanguageModel
    from adder.training.opened import Opened

WEIGHTS = ("int8", "int4")
_MOST_TOKENS = 1 << 16  # enough to tell a hundredth of a percent, and soon read
_LENGTH = 2048


def convert_weights(
    source: Path, target: Path, weights: str, text: str | None, as_json: bool
) -> None:
    """Round the language model in `source` into the folder `target`, which appears whole or not at all."""
    from adder.files import shell_word
    from adder.models.quantized import quantize_model
    from adder.training.opened import open_model

    if source.is_file():
        raise UsageError(
            f"--weights is for language models: a run or the folder of a model, and {source} is a file"
        )
    opened = open_model(source)
    before, vocabulary = opened.language_model()
    if before.config.weights != "float":
        raise UsageError(
            f"{source} has {before.config.weights} weights already: give the model it was made of"
        )
    use_threads(None, before.config.parameter_count())
    name, ids, size, problem = _text_to_measure(opened, vocabulary, text)
    after = quantize_model(before, weights)  # type: ignore[arg-type]
    facts: dict[str, Any] = {
        "source": str(source),
        "model": str(target),
        "weights": weights,
        "parameters": before.config.parameter_count(),
        "megabytes_before": _megabytes(before),
        "megabytes_after": _megabytes(after),
        "text": name,
        "not_measured": problem,
    }
    if problem is None:
        facts |= _measured(before, after, ids, size)
    _write(after, vocabulary, target)
    if as_json:
        print(json.dumps(facts))
        return
    saved = facts["megabytes_before"] / facts["megabytes_after"]
    print(
        f"{facts['parameters']:,} parameters: {facts['megabytes_before']:.2f} MB before, "
        f"{facts['megabytes_after']:.2f} MB with {weights} weights, {saved:.2f} times less"
    )
    if problem is None:
        for when in ("before", "after"):
            print(
                f"{when:<7} {facts[f'bits_per_byte_{when}']:.4f} bits per byte, "
                f"perplexity {facts[f'perplexity_{when}']:.4f} per token"
            )
        change = facts["perplexity_after"] / facts["perplexity_before"] - 1
        print(
            f"change  {100 * change:+.2f} % of perplexity, over {facts['tokens']:,} tokens of {name}"
        )
    else:
        print(f"perplexity was not measured: {problem}")
    if vocabulary is not None:
        print(f"in {target}: adder generate {shell_word(target)} PROMPT")
    else:
        print(f"in {target}, without a vocabulary, as {source} has none")


def _text_to_measure(
    opened: "Opened", vocabulary: "Vocabulary | None", text: str | None
) -> tuple[str | None, Any, int, str | None]:
    """(name, ids, bytes, None) of the text to measure on, or (None, None, 0, why there is none)."""
    from adder.data.text import read_source
    from adder.training.evaluation import encode_for_evaluation
    from adder.training.text import held_out_text

    if vocabulary is None:
        if text is not None:
            raise UsageError(f"--text: {opened.path} has no vocabulary to read a text with")
        return None, None, 0, f"{opened.path} has no vocabulary"
    if text is not None:
        given = read_source(text)
        name, words = given.name, given.text
    elif opened.run is None:
        return None, None, 0, f"{opened.path} is a model of no run, and no --text was given"
    else:
        try:
            name, words = held_out_text(opened.run)
        except UsageError as error:
            reason = str(error).replace("give a SOURCE to evaluate on", "give --text")
            return None, None, 0, reason
    ids, size = encode_for_evaluation(vocabulary, words, name, _MOST_TOKENS)
    return name, ids, size, None


def _measured(
    before: "LanguageModel", after: "LanguageModel", ids: Any, size: int
) -> dict[str, Any]:
    from adder.training.evaluation import evaluate_text

    facts: dict[str, Any] = {}
    for when, model in (("before", before), ("after", after)):
        result = evaluate_text(model, ids, length=_LENGTH)
        facts |= {
            f"bits_per_byte_{when}": result.bits_per(size),
            f"perplexity_{when}": result.perplexity,
            "tokens": result.tokens,
        }
    return facts


def _megabytes(model: "LanguageModel") -> float:
    from adder.models.checkpoint import model_tensors

    return sum(each.nbytes for each in model_tensors(model).values()) / 1e6


def _write(model: "LanguageModel", vocabulary: "Vocabulary | None", target: Path) -> None:
    from adder.data.vocabulary import VOCABULARY

    with new_folder(target) as folder:
        model.save_pretrained(folder)
        if vocabulary is not None:
            vocabulary.save(folder / VOCABULARY)
