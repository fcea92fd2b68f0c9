"""Which names of transformers are replaced by what, and how they are put back."""

import importlib
import importlib.util
import weakref
from collections import Counter
from contextlib import ExitStack
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from torch import nn

from adder.errors import UsageError
from adder.integrations.transformers import operators, projection
from adder.integrations.transformers.operators import Operator

Model = TypeVar("Model", bound=nn.Module)
OLDEST = (5, 15)
_MAMBA: dict[str, Operator] = {
    "causal_conv1d_fn": operators.convolution_without_packing,
    "causal_conv1d_update": operators.convolution_update,
    "mamba_selective_scan": operators.scan,
    "mamba_selective_state_update": operators.scan_update,
}
_FUSED: dict[str, Operator] = {"mamba_inner_fn": operators.not_fused}
_MAMBA2: dict[str, Operator] = {
    "causal_conv1d_fn": operators.convolution,
    "causal_conv1d_update": operators.convolution_update,
    "mamba2_chunk_scan": operators.chunk_scan,
    "mamba2_selective_state_update": operators.scan_update,
    "mamba2_split_conv1d_scan_combined": operators.not_fused,
}


def _classes(norm: str, mixer: str | None = None) -> dict[str, Operator]:
    """The `forward` of these classes."""
    continuing = {} if mixer is None else {f"{mixer}.forward": operators.continuing}
    return continuing | {f"{norm}.forward": operators.norm}


_TABLE: dict[str, dict[str, Operator]] = {
    "mamba": _MAMBA | _FUSED | _classes("MambaRMSNorm", "MambaMixer"),
    "falcon_mamba": _MAMBA | _FUSED | _classes("FalconMambaRMSNorm", "FalconMambaMixer"),
    "jamba": _MAMBA | _classes("JambaRMSNorm", "JambaMambaMixer"),
    "zamba": _MAMBA | _classes("ZambaRMSNorm", "ZambaMambaMixer"),
    "mamba2": _MAMBA2 | _classes("Mamba2RMSNorm"),
    "bamba": _MAMBA2 | _classes("BambaRMSNorm"),
    "zamba2": _MAMBA2 | _classes("Zamba2RMSNorm"),
    "nemotron_h": _MAMBA2 | _classes("NemotronHRMSNorm"),
    "granitemoehybrid": _MAMBA2 | _classes("GraniteMoeHybridRMSNorm"),
    "falcon_h1": _MAMBA2 | _classes("FalconH1RMSNorm"),
}
FAMILIES = tuple(_TABLE)


class Calls(NamedTuple):
    """How often each operator ran since this module was imported, by "family.name".

    `ours` counts the calls that adder served, `originals` those that fell back to transformers. Calls inside a
    compiled graph are not counted.
    """

    ours: Counter[str]
    originals: Counter[str]


class _Patch:
    """The replaced names of one family, and who wanted them replaced: `patch`, or models that still live."""

    def __init__(self, family: str, module: ModuleType):
        self.everywhere = False
        self.models: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.replaced: list[tuple[Any, str, Operator, Operator]] = []
        for name, ours in _TABLE[family].items():
            *owners, attribute = name.split(".")
            owner = getattr(module, owners[0], None) if owners else module
            original = getattr(owner, attribute, None)
            if original is None:
                raise UsageError(
                    f"{module.__name__} of transformers {_version()} has no {name}, which adder replaces: "
                    "this version of adder does not know that version"
                )
            replacement = _replacement(f"{family}.{name}", original, ours)
            self.replaced.append((owner, attribute, original, replacement))

    def do(self) -> None:
        for owner, attribute, _, replacement in self.replaced:
            setattr(owner, attribute, replacement)

    def undo(self) -> None:
        for owner, attribute, _, replacement in self.replaced:
            if getattr(owner, attribute) is not replacement:
                raise UsageError(
                    f"{owner.__name__}.{attribute} was replaced again after adder replaced it: undo that first"
                )
        for owner, attribute, original, _ in self.replaced:
            setattr(owner, attribute, original)


_patches: dict[str, _Patch] = {}
_calls = Calls(Counter(), Counter())


def _replacement(name: str, original: Operator, ours: Operator) -> Operator:
    if ours is operators.not_fused:
        return ours  # it computes nothing: there is nothing to count and nothing to fall back from
    if ours is operators.continuing:
        return operators.continuing(original)
    return operators.in_place_of(original, ours, partial(_count, name))


def _count(name: str, served: bool) -> None:
    (_calls.ours if served else _calls.originals)[name] += 1


def calls() -> Calls:
    """Return how often our operators ran, and how often transformers' own did in their place."""
    return Calls(_calls.ours.copy(), _calls.originals.copy())


def patch() -> ExitStack:
    """Put our operators under all models of all families in this process, those that are not built yet too.

    Calling it again changes nothing. `unpatch()` puts the originals back, as does the end of `with patch():`.

    Raises:
        UsageError: transformers is missing or older than 5.15, or lacks a name that is to be replaced.
    """
    _require_transformers()
    modules = {family: importlib.import_module(_module_name(family)) for family in FAMILIES}
    _install(modules)
    for each in _patches.values():
        each.everywhere = True
    undo = ExitStack()
    undo.callback(unpatch)
    return undo


def accelerate(model: Model) -> Model:
    """Put our operators under a model of transformers, and return it.

    The operators, and the forward of the family's RMSNorm, are replaced in the modeling files that the model's classes
    come from: other models of the same family in this process use them as well. The model's own dense layers are
    multiplied by `adder.ops.linear`. Nothing else changes: class, parameters, cache and `generate` stay.
    `unpatch(model)` undoes it.

    Where transformers is wrong: a Mamba-1 prompt fed in several pieces keeps its state here. Packed sequences (seq_idx)
    of a Mamba-1 model, and an attention_mask longer than the new token in decoding, raise an error: they would corrupt
    the state. Not to be seen from an operator: a prompt padded on the right corrupts the cache, and Mamba-2 decoding
    ignores time_step_limit. `adder.LanguageModel` is right in both.

    Raises:
        UsageError: the model holds no layer of a family that is served, or as `patch` raises.
    """
    _require_transformers()
    homes = {parent.__module__ for module in model.modules() for parent in type(module).__mro__}
    families = [family for family in FAMILIES if _module_name(family) in homes]
    if not families:
        raise UsageError(
            f"accelerate: {type(model).__name__} holds no layer of a model that is served: {', '.join(FAMILIES)}"
        )
    _install({family: importlib.import_module(_module_name(family)) for family in families})
    for family in families:
        _patches[family].models.add(model)
    projection.replace(model)
    return model


def unpatch(model: nn.Module | None = None) -> None:
    """Undo `accelerate(model)`, or without a model put back every operator of transformers, whoever replaced it.

    The operators of a family go back when neither `patch` nor another living model wants them. Undoing what was not
    done changes nothing.

    Raises:
        UsageError: somebody replaced one of the operators after us.
    """
    if model is not None:
        projection.restore(model)
    for family, each in list(_patches.items()):
        if model is not None:
            each.models.discard(model)
            if each.everywhere or each.models:
                continue
        each.undo()
        del _patches[family]


def _install(modules: dict[str, ModuleType]) -> None:
    """Patch families that are not yet: all of them, or none if one cannot be."""
    new = {
        family: _Patch(family, module)
        for family, module in modules.items()
        if family not in _patches
    }
    for family, each in new.items():
        each.do()
        _patches[family] = each


def _module_name(family: str) -> str:
    return f"transformers.models.{family}.modeling_{family}"


def _require_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("transformers is not installed: pip install 'adder-ssm[transformers]'")
    version = _version()
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < OLDEST:
        raise UsageError(
            f"transformers is {version}, and its operators can be replaced from 5.15 on: pip install -U transformers"
        )


def _version() -> str:
    return str(importlib.import_module("transformers").__version__)
