"""A plan of sizes that a CPU measures in seconds."""

from typing import Any

import torch

from adder.benchmark.gpu.plan import Plan

MODEL = {"vocab_size": 16, "d_model": 64, "n_layer": 2}


def tiny(**changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "device": torch.device("cpu"),
        "budget": 0.0,
        "small": True,
        "scans": ((1, 8, 4),),
        "states": 4,
        "memories": ((1, 8, 4),),
        "heads": ((1, 8, 2),),
        "head": 4,
        "head_states": 8,
        "kernels": (2, 4, 16),
        "loop": None,
        "equal": (1, 8, 4),
        "lengths": (8, 16),
        "width": 64,
        "blocks": ((1, 8, 8),),
        "models": {"tiny": MODEL},
        "prompt": 8,
        "long": (16,),
        "streams": (1, 2),
        "tokens": 5,
        "trained": (1, 8),
    }
    return Plan(**{**settings, **changes})
