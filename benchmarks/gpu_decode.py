"""Milliseconds a token on a GPU, and of a prompt: `python benchmarks/gpu_decode.py`.

Mamba of published sizes with random weights in bfloat16. A token is what `LanguageModel.generate` does: the step of
all streams, as a CUDA graph, and the choice of the likeliest token on the device. Beside it the bytes of the weights
and of the states (read and written) over this card's bandwidth, and mamba_ssm on an H200 (`gpu_limits.md`).
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from adder.models import LanguageModel, LanguageModelConfig
from adder.models.decoder import Decoder
from gpu_selective_scan import ceilings, median

SIZES = {"130M": (768, 24), "1.4B": (2048, 48), "2.8B": (2560, 64)}
# mamba_ssm: ms a token (size, streams), and of a prompt of 2048 tokens
MAMBA = {("130M", 1): 2.51, ("130M", 64): 2.84, ("2.8B", 1): 5.69, ("2.8B", 64): 7.23}
PREFILL = {"130M": 17.0, "2.8B": 41.5}


def make(size: str) -> LanguageModel:
    d_model, layers = SIZES[size]
    with torch.device("cuda"):
        model = LanguageModel(
            LanguageModelConfig(vocab_size=50280, d_model=d_model, n_layer=layers)
        )
    return model.to(torch.bfloat16).eval()


@torch.no_grad()
def token(model: LanguageModel, streams: int, tokens: int = 200) -> dict[str, float]:
    """Median time of a token in ms, by the clock of the host and by that of the device."""
    decoder, state = Decoder(model), model.initial_state(streams)
    ids = torch.randint(50280, (streams, 1), device="cuda")
    read = model(ids, state=state, logits_to_keep=1)
    logits, now, spare = read.logits[:, 0], read.state, None
    assert decoder.serves(now), decoder.refusal
    for _ in range(6):  # both graphs are made
        logits, after = decoder.step(logits.argmax(-1), now, spare)
        now, spare = after, now
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(tokens + 1)]
    begin = time.perf_counter()
    marks[0].record()
    for mark in marks[1:]:
        logits, after = decoder.step(logits.argmax(-1), now, spare)
        now, spare = after, now
        mark.record()
    torch.cuda.synchronize()
    host = (time.perf_counter() - begin) / tokens * 1e3
    device = statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))
    return {"host": host, "device": device}


@torch.no_grad()
def prompt(model: LanguageModel, length: int = 2048) -> float:
    ids = torch.randint(50280, (1, length), device="cuda")
    state = model.initial_state(1)
    return median([lambda: model(ids, state=state, logits_to_keep=1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", action="append", choices=SIZES)
    parser.add_argument("--streams", type=int, action="append")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    given = parser.parse_args()
    bandwidth, _ = ceilings()
    print(f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e12:.2f} TB/s")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "copy": bandwidth, "rows": []}
    for size in given.size or ("130M", "2.8B"):
        model = make(size)
        weights = sum(each.nbytes for each in model.parameters())
        for streams in given.streams or (1, 8, 64):
            state = sum(
                each.nbytes for part in model.initial_state(streams) for each in part.values()
            )  # type: ignore[union-attr, misc]
            row: dict[str, Any] = {"size": size, "streams": streams, **token(model, streams)}
            row["floor"] = (weights + 2 * state) / bandwidth * 1e3
            row["mamba_ssm"] = MAMBA.get((size, streams))
            found["rows"].append(row)
            ratio = f"{row['mamba_ssm'] / row['host']:.2f}x mamba_ssm" if row["mamba_ssm"] else ""
            print(
                f"{size} b={streams:3d}  {row['host']:.3f} ms a token (device {row['device']:.3f}), floor "
                f"{row['floor']:.3f}, {100 * row['floor'] / row['host']:.0f} %  {ratio}",
                flush=True,
            )
        ms = prompt(model)
        found["rows"].append({"size": size, "prompt": ms})
        print(f"{size} prompt of 2048: {ms:.1f} ms, mamba_ssm {PREFILL.get(size)}", flush=True)
        del model
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
