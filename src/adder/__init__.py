"""adder: state space sequence models, from the continuous SSM through S4 to Mamba.

The public names are looked up when they are first used, so that `adder --help` need not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adder import layers as layers
    from adder import ops as ops
    from adder import theory as theory
    from adder.errors import AdderError as AdderError
    from adder.errors import DamagedFile as DamagedFile
    from adder.errors import UsageError as UsageError
    from adder.explanation import explain as explain
    from adder.generation.stream import Stream as Stream
    from adder.layers import S4 as S4
    from adder.layers import S4D as S4D
    from adder.layers import Mamba as Mamba
    from adder.layers import Mamba2 as Mamba2
    from adder.layers import SelectiveSSM as SelectiveSSM
    from adder.models import LanguageModel as LanguageModel
    from adder.models import LanguageModelConfig as LanguageModelConfig
    from adder.models import SequenceClassifier as SequenceClassifier
    from adder.models import SequenceClassifierConfig as SequenceClassifierConfig
    from adder.theory import NPLR as NPLR
    from adder.theory import DiscreteStateSpace as DiscreteStateSpace
    from adder.theory import StateSpace as StateSpace
    from adder.theory import discretize as discretize
    from adder.theory import hippo as hippo
    from adder.theory import nplr as nplr

__version__ = "0.1.0"

_HOME = {
    "AdderError": "adder.errors",
    "DamagedFile": "adder.errors",
    "DiscreteStateSpace": "adder.theory",
    "LanguageModel": "adder.models",
    "LanguageModelConfig": "adder.models",
    "Mamba": "adder.layers",
    "Mamba2": "adder.layers",
    "NPLR": "adder.theory",
    "S4": "adder.layers",
    "S4D": "adder.layers",
    "SelectiveSSM": "adder.layers",
    "SequenceClassifier": "adder.models",
    "SequenceClassifierConfig": "adder.models",
    "StateSpace": "adder.theory",
    "Stream": "adder.generation",
    "UsageError": "adder.errors",
    "discretize": "adder.theory",
    "explain": "adder.explanation",
    "hippo": "adder.theory",
    "nplr": "adder.theory",
}
_PACKAGES = ("layers", "ops", "theory")
__all__ = [*_HOME, *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"adder.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'adder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
