"""A model for lm-evaluation-harness, under the name "adder" once this module is imported.

    python -m adder.integrations.lm_eval --model adder --model_args pretrained=FOLDER --tasks NAME --include_path TASKS

is the harness's own command line with it; in Python:

    from adder.integrations.lm_eval import AdderLM
    lm_eval.simple_evaluate(model=AdderLM("FOLDER", batch_size=8), tasks=["NAME"])
"""

import importlib.metadata
import importlib.util

from adder.errors import AdderError, UsageError

OLDEST = (0, 4, 10)


def _expect_library() -> None:
    """Raise where there is no lm-evaluation-harness, or one that is too old."""
    if importlib.util.find_spec("lm_eval") is None:
        raise AdderError(
            "adder.integrations.lm_eval needs lm-evaluation-harness: pip install lm_eval"
        )
    version = importlib.metadata.version("lm_eval")
    if tuple(int(part) for part in version.split(".")[:3]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UsageError(
            f"lm_eval is {version}, expected {oldest} or later: pip install -U lm_eval"
        )


_expect_library()

from adder.integrations.lm_eval.model import AdderLM as AdderLM  # noqa: E402
