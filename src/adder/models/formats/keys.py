"""A config read key by key, so that a key that nobody asked for is named and never passed over."""

import math
from typing import Any

from adder.errors import UsageError

# What transformers writes into every config.json, of how text is generated and who wrote it: no size depends on it.
GENERIC = tuple(
    """
    _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905
)


class Keys:
    """The values of a config, taken one after the other.

    Raises:
        UsageError: what was read is no JSON object; from `finish`, a key was not taken.
    """

    def __init__(self, values: dict[str, Any], name: str = "") -> None:
        if not isinstance(values, dict):
            raise UsageError(f"{name or 'the config'} is {values!r}, expected an object")
        self._left, self._name = dict(values), name

    def take(self, key: str, default: Any) -> Any:
        """Return the value of a key, or the default where there is none."""
        return self._left.pop(key, default)

    def expect(self, key: str, allowed: tuple[Any, ...], default: Any) -> None:
        """Take a key whose value must be one of those that adder runs."""
        value = self.take(key, default)
        if not any(
            value is each or (value == each and type(value) is type(each)) for each in allowed
        ):
            raise UsageError(
                f"{self._called(key)} is {value!r}, expected {' or '.join(map(repr, allowed))}"
            )

    def ignore(self, *keys: str) -> None:
        """Take keys that change no number."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Refuse what is left."""
        if self._left:
            raise UsageError(
                f"{', '.join(self._called(key) for key in self._left)}: not known, and it may change the numbers; "
                "take it out of the config if it does not"
            )

    def _called(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key


def as_limit(value: Any) -> tuple[Any, ...]:
    """Return the least and the largest step size, an infinity being written as JSON's Infinity, as a word, or as
    {"__float__": "Infinity"}."""
    if value is None:
        return (0.0, math.inf)
    if not isinstance(value, list | tuple):
        raise UsageError(f"the limits of the step size are {value!r}, expected two numbers")
    return tuple(_number(each) for each in value)


def _number(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        value = value["__float__"]
    if isinstance(value, str) and value.lower() in ("inf", "+inf", "infinity"):
        return math.inf
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
