"""`adder convert --format`: a language model from one published format to another."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adder.errors import AdderError, UsageError

# What lies beside a model and belongs to its text: it goes along as it is.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "vocabulary.json",
)


def convert_format(source: Path, target: Path, format: str, as_json: bool) -> None:
    """Write the language model in `source` into the folder `target`, which appears whole or not at all."""
    from adder.data.vocabulary import TOKENIZER, VOCABULARY, Tokens
    from adder.files import shell_word
    from adder.models.language_model import LanguageModel
    from adder.models.published import FORMATS
    from adder.training.opened import open_model

    if format not in FORMATS:
        raise UsageError(f"--format must be one of {', '.join(FORMATS)}, got {format}")
    opened = open_model(source)
    if opened.run is not None:
        model, vocabulary = opened.language_model()
    else:
        # As it is published: its tokenizer would take the padding out of its vocabulary.
        opened.expect_language_model()
        model, vocabulary = LanguageModel.from_pretrained(opened.path), None
    with new_folder(target) as folder:
        model.save_pretrained(folder, format)
        for name in _BESIDE:
            if opened.run is None and (opened.path / name).is_file():
                shutil.copyfile(opened.path / name, folder / name)
        if vocabulary is not None:
            vocabulary.save(folder / VOCABULARY)
        if isinstance(vocabulary, Tokens):
            (folder / TOKENIZER).write_text(vocabulary.to_dict()["tokenizer"], encoding="utf-8")
    count = model.config.parameter_count()
    if as_json:
        facts = {"source": str(source), "model": str(target), "format": format}
        print(json.dumps({**facts, "config": model.config.to_dict(), "parameters": count}))
        return
    print(
        f"{count:,} parameters of {model.config.layer}, in the format of {format}, in {shell_word(target)}"
    )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `target` once it is whole. An empty folder in its place is taken over.

    Raises:
        AdderError: it cannot be written; nothing is left of it.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise AdderError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
