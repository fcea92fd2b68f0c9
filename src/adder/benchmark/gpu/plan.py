"""What a run of `adder bench gpu` measures, and at which sizes."""

from dataclasses import dataclass, field
from typing import Any

import torch

from adder.errors import UsageError

Sizes = tuple[tuple[int, int, int], ...]
SECTIONS = ("limits", "operators", "lengths", "block", "models")
MINUTES = 8.0
MODELS: dict[str, dict[str, Any]] = {
    "130M": {"vocab_size": 50280, "d_model": 768, "n_layer": 24},
    "1.4B": {"vocab_size": 50280, "d_model": 2048, "n_layer": 48},
    "2.8B": {"vocab_size": 50280, "d_model": 2560, "n_layer": 64},
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of everything; the defaults are those of a large GPU, and the tests have their own.

    scans: (b, l, d) of `selective_scan`, with `states` states; memories: those of the operators that only move memory;
    heads: (b, l, h) of `state_space_dual`, with `head` channels and `head_states` states each; kernels: (h, n, l) of
    S4's and S4D's; lengths: of the scan beside attention, with `width` channels, in heads of 64 for attention; loop:
    (b, l, d) of the compiled loop over time, none is needed; blocks: (b, l, d_model) of the Mamba block;
    trained: (b, l) of a training step of the first model; long: prompts of so many tokens for it.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    sections: frozenset[str] = frozenset(SECTIONS)
    quick: bool = False
    minutes: float = MINUTES
    budget: float = 0.2
    small: bool = False
    peers: bool = True
    scans: Sizes = ((8, 2048, 4096), (32, 2048, 1536), (1, 2048, 4096), (8, 2048, 1536))
    states: int = 16
    memories: Sizes = ((8, 2048, 4096), (32, 2048, 1536))
    heads: Sizes = ((8, 2048, 24), (8, 2048, 64), (1, 65536, 24))
    head: int = 64
    head_states: int = 128
    kernels: tuple[int, int, int] | None = (512, 64, 16384)
    loop: tuple[int, int, int] | None = (8, 64, 1536)
    equal: tuple[int, int, int] = (8, 2048, 1536)
    lengths: tuple[int, ...] = tuple(2**k for k in range(9, 21))
    width: int = 1024
    blocks: Sizes = ((8, 2048, 768), (8, 2048, 2048), (1, 1 << 20, 768))
    models: dict[str, dict[str, Any]] = field(default_factory=lambda: dict(MODELS))
    prompt: int = 2048
    long: tuple[int, ...] = (1 << 15, 1 << 20)
    streams: tuple[int, ...] = (1, 16, 64, 128)
    tokens: int = 200
    trained: tuple[int, int] | None = (8, 1024)

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the figures, for beside them."""
        return {
            "sections": [name for name in SECTIONS if name in self.sections],
            "quick": self.quick,
            "minutes": self.minutes,
            "dtype": "bfloat16",
            "states": self.states,
            "models": self.models,
        }


def plan_of(sections: frozenset[str], quick: bool, minutes: float) -> Plan:
    """Return the plan of the command line.

    Raises:
        UsageError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            "adder bench gpu: torch finds no GPU here; adder bench cpu measures this machine"
        )
    common: dict[str, Any] = {"sections": sections, "minutes": minutes}
    if not quick:
        return Plan(**common)
    return Plan(
        **common,
        quick=True,
        budget=0.1,
        scans=((8, 2048, 4096),),
        memories=((8, 2048, 4096),),
        heads=((8, 2048, 24),),
        loop=None,
        lengths=(512, 2048, 8192, 32768),
        blocks=((8, 2048, 768),),
        models={"130M": MODELS["130M"]},
        long=(),
        streams=(1, 64),
    )
