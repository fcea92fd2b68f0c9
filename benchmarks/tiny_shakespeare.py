"""How well does adder learn tiny Shakespeare beside nanoGPT, at equal tokens and at equal time?

    python benchmarks/tiny_shakespeare.py --nanogpt CHECKOUT [--data FILE] [--steps N] [--json]

Both read 2000 batches of 12 x 64 characters of the first 90 % of the text, the budget of nanoGPT's
recipe for a CPU (its README: 4 layers, 4 heads, 128 channels, dropout 0, no compilation). Both are
scored over the whole last 10 %: in windows of 64 that start from nothing, which is all that nanoGPT
can see, and adder also as one stream with its state carried on. Then adder trains once more, for
the seconds that nanoGPT took. Without --nanogpt, adder is measured alone.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adder import LanguageModel, LanguageModelConfig
from adder.benchmark.timing import machine
from adder.data.vocabulary import Characters
from adder.data.windows import CarriedWindows, RandomWindows
from adder.training import TrainingConfig, evaluate_text
from adder.training.device import choose_precision
from adder.training.learner import Learner
from adder.training.presets import find_preset
from adder.training.schedule import learning_rate

CPU = torch.device("cpu")
DATA = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"
ROWS, LENGTH = 12, 64
ROWS_SCORED_AT_ONCE = 128


@dataclass
class Result:
    """How one training went; losses are nats per character over the whole validation part."""

    name: str
    parameters: int
    steps: int
    seconds: float
    milliseconds_per_step: float
    loss_in_windows: float
    loss_with_state: float | None


def train_adder(
    name: str,
    train: np.ndarray,
    valid: np.ndarray,
    vocab_size: int,
    options: Any,
    steps: int,
    time_limit: float = math.inf,
) -> Result:
    """Train the preset for `steps` steps, or until the time is over."""
    preset = find_preset(options.preset)
    config = TrainingConfig(
        **{**preset.training, "steps": steps, "batch_size": ROWS, "length": LENGTH},
        seed=options.seed,
        precision=choose_precision(options.precision, CPU, preset.model["d_model"]),
    )
    torch.manual_seed(config.seed)
    model = LanguageModel(LanguageModelConfig(vocab_size=vocab_size, **preset.model))
    learner = Learner(model, config, CPU)
    kind = CarriedWindows if config.carry_state else RandomWindows
    windows = kind(train, config.rows, config.length, config.seed)
    start, done = time.perf_counter(), 0
    while done < steps and time.perf_counter() - start < time_limit:
        learner.step(windows.window(done), learning_rate(done, config))
        done += 1
        report(name, done, steps, start)
    seconds = time.perf_counter() - start
    model.eval()
    return Result(
        name,
        model.config.parameter_count(),
        done,
        seconds,
        seconds / done * 1e3,
        loss_in_windows(lambda x: model(x).logits, valid),
        evaluate_text(model, valid).loss,
    )


def train_nanogpt(
    checkout: Path, train: np.ndarray, valid: np.ndarray, vocab_size: int, options: Any
) -> Result:
    """nanoGPT's own model and optimiser under the settings of its recipe for a CPU."""
    peer = import_file(checkout / "model.py")
    torch.manual_seed(1337 + options.seed)
    with contextlib.redirect_stdout(sys.stderr):
        model: nn.Module = peer.GPT(
            peer.GPTConfig(
                block_size=LENGTH,
                vocab_size=vocab_size,
                n_layer=4,
                n_head=4,
                n_embd=128,
                dropout=0.0,
                bias=False,
            )
        )
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    text = torch.from_numpy(train)
    start = time.perf_counter()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = nanogpt_learning_rate(step, options.steps)
        places = torch.randint(len(text) - LENGTH, (ROWS,))
        windows = torch.stack([text[place : place + LENGTH + 1] for place in places])
        _, loss = model(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report("nanoGPT", step + 1, options.steps, start)
    seconds = time.perf_counter() - start
    model.eval()

    def logits(x: Tensor) -> Tensor:
        # Given targets it returns every position's logits, without them the last one's only.
        return model(x, x)[0]

    return Result(
        "nanoGPT",
        sum(parameter.numel() for parameter in model.parameters()),
        options.steps,
        seconds,
        seconds / options.steps * 1e3,
        loss_in_windows(logits, valid),
        None,
    )


def nanogpt_learning_rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then a cosine from 1e-3 to 1e-4."""
    if step < 100:
        return 1e-3 * (step + 1) / 101
    progress = (step - 100) / max(1, steps - 100)
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * progress)) * 9e-4


@torch.no_grad()
def loss_in_windows(logits: Any, ids: np.ndarray) -> float:
    """Nats per character where the text is cut in windows of 64 that know nothing of each other."""
    inputs, targets = torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])
    whole = len(inputs) // LENGTH * LENGTH
    pieces = [
        (x.view(-1, LENGTH), y.view(-1, LENGTH))
        for x, y in zip(
            inputs[:whole].split(LENGTH * ROWS_SCORED_AT_ONCE),
            targets[:whole].split(LENGTH * ROWS_SCORED_AT_ONCE),
            strict=True,
        )
    ]
    if whole < len(inputs):
        pieces.append((inputs[None, whole:], targets[None, whole:]))
    nats = sum(
        float(F.cross_entropy(logits(x).flatten(0, 1), y.flatten(), reduction="sum"))
        for x, y in pieces
    )
    return nats / len(inputs)


def import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is not there: give --nanogpt a checkout of karpathy/nanoGPT")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def report(name: str, done: int, steps: int, start: float) -> None:
    if done % 100 == 0 or done == steps:
        seconds = time.perf_counter() - start
        print(f"{name}: step {done}/{steps}, {seconds:.0f} s", file=sys.stderr)


def table(results: list[Result]) -> list[str]:
    lines = [
        f"{'':<24}{'parameters':>11}{'steps':>7}{'seconds':>9}{'ms/step':>9}"
        f"{'loss, 64':>10}{'carried':>9}"
    ]
    for one in results:
        carried = "" if one.loss_with_state is None else f"{one.loss_with_state:.4f}"
        lines.append(
            f"{one.name:<24}{one.parameters:>11,}{one.steps:>7}{one.seconds:>9.1f}"
            f"{one.milliseconds_per_step:>9.1f}{one.loss_in_windows:>10.4f}{carried:>9}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--precision",
        default="auto",
        help="adder's, as in adder train; nanoGPT's CPU recipe is float32",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.data.exists():
        raise SystemExit(f"skipped: {options.data} is not here: give --data")
    text = options.data.read_text(encoding="utf-8")
    vocabulary = Characters(text)
    ids = vocabulary.encode(text)
    train, valid = ids[: int(len(ids) * 0.9)], ids[int(len(ids) * 0.9) :]

    common = (train, valid, vocabulary.size, options)
    results = [train_adder("adder, equal tokens", *common, options.steps)]
    ratios = {}
    if options.nanogpt is not None:
        peer = train_nanogpt(options.nanogpt, *common)
        # The schedule ends with the budget, as any training that knows its budget would have it.
        steps = max(1, int(peer.seconds / results[0].seconds * options.steps))
        timed = train_adder("adder, equal time", *common, steps, peer.seconds)
        ratios = {
            "loss over nanoGPT's, equal tokens": results[0].loss_in_windows / peer.loss_in_windows,
            "loss over nanoGPT's, equal time": timed.loss_in_windows / peer.loss_in_windows,
            "ms per step over nanoGPT's": results[0].milliseconds_per_step
            / peer.milliseconds_per_step,
        }
        results += [timed, peer]
    if options.json:
        rows = [asdict(one) for one in results]
        print(json.dumps({"machine": machine(), "results": rows, "ratios": ratios}))
        return
    print(f"{machine()}, {torch.get_num_threads()} threads")
    print("\n".join(table(results)))
    for name, ratio in ratios.items():
        print(f"{name:<40}{ratio:.3f}")


if __name__ == "__main__":
    main()
