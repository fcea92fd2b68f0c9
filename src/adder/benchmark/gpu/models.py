"""A Mamba block, and whole models: reading a prompt, writing a token, one step of training; peak memory beside."""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adder.benchmark.gpu import peers as functions
from adder.benchmark.gpu.clock import Call, Times
from adder.benchmark.gpu.jobs import Bench, Job, row_of, size_words
from adder.benchmark.gpu.limits import Work
from adder.benchmark.gpu.made import fill, make_model, transformer_of
from adder.benchmark.gpu.peers import is_there
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.gpu.results import Row
from adder.benchmark.model import flops_per_token
from adder.layers import Mamba
from adder.models import LanguageModel, LanguageModelConfig
from adder.models.decoder import Decoder

CONFIG = {"vocab_size": 8, "n_layer": 1}  # of a block, for what its products cost
PIECES = 5  # in which the tokens are timed
WARM_UP_TOKENS = 6  # by then the graphs of both sets of states are made


def block_jobs(plan: Plan, peers: dict[str, str]) -> Iterable[Job]:
    """Return the measurements of a block of Mamba, forward and backward under autocast."""
    for d_model in plan.widths:
        size = f"{size_words(*plan.block)}, d_model {d_model}"
        yield Job("block", "Mamba block", size, "adder", partial(_block, d_model, False))
        if is_there(peers, "mamba_ssm"):
            yield Job("block", "Mamba block", size, "mamba_ssm", partial(_block, d_model, True))


def _block(d_model: int, theirs: bool, bench: Bench) -> Iterator[Row]:
    plan, clock = bench.plan, bench.clock
    b, l = plan.block
    make = functions.mamba_ssm_block if theirs else _our_block
    block = make(d_model, clock.device)
    sets = [drawn(clock.device, b, l, d_model) for _ in range(2)]
    parameters = list(block.parameters())

    def call(x: Tensor, dy: Tensor) -> object:
        with torch.autocast(clock.device.type, dtype=torch.bfloat16):
            out = block(x)
        y = out[0] if isinstance(out, tuple) else out
        return torch.autograd.grad(y, [x, *parameters], dy.to(y.dtype))

    config = LanguageModelConfig(d_model=d_model, **CONFIG)  # type: ignore[arg-type]
    flops = 3.0 * b * l * flops_per_token(config, head=False)
    exponentials = 2.0 * b * l * config.d_inner * config.d_state
    calls: list[Call] = [partial(call, *each) for each in sets]
    calls[0]()
    with clock.peak() as peak:
        calls[0]()
    work = Work(0.0, exponentials, flops)
    yield row_of(bench, "both", clock.times(calls), work, peak_bytes=peak.bytes)


def _our_block(d_model: int, device: torch.device) -> nn.Module:
    with torch.device(device):
        return Mamba(d_model)


def drawn(device: torch.device, b: int, l: int, d: int) -> tuple[Tensor, Tensor]:
    """An input that a gradient is wanted of, and the gradient of the output."""
    x, dy = (torch.randn(b, l, d, device=device) for _ in range(2))
    return x.requires_grad_(), dy


def jobs(plan: Plan, peers: dict[str, str]) -> Iterable[Job]:
    """Return the measurements of every model, and of a Transformer of its size beside the first of them."""
    del peers
    for number, (name, settings) in enumerate(plan.models.items()):
        config = LanguageModelConfig(**settings)
        yield from _reading_and_writing(plan, name, "adder", config, plan.streams)
        if number == 0:
            yield from _first(plan, name, config)


def _first(plan: Plan, name: str, config: LanguageModelConfig) -> Iterator[Job]:
    if plan.long is not None:
        job = partial(_prompt, config, plan.long)
        yield Job("models", name, f"prefill 1x{plan.long}", "adder", job)
    transformer = transformer_of(config)
    yield from _reading_and_writing(plan, name, "Transformer", transformer, plan.streams[:1])
    if plan.trained is None:
        return
    b, l = plan.trained
    for subject, each in (("adder", config), ("Transformer", transformer)):
        yield Job("models", name, f"training {b}x{l}", subject, partial(_training, each, b, l))


def _reading_and_writing(
    plan: Plan, name: str, subject: str, config: LanguageModelConfig, streams: tuple[int, ...]
) -> Iterator[Job]:
    prompt = partial(_prompt, config, plan.prompt)
    yield Job("models", name, f"prefill 1x{plan.prompt}", subject, prompt)
    for count in streams:
        yield Job("models", name, f"decode, batch {count}", subject, partial(_token, config, count))


def _model(bench: Bench, config: LanguageModelConfig) -> LanguageModel:
    def make() -> LanguageModel:
        return make_model(config, torch.bfloat16, bench.clock.device)

    model: LanguageModel = bench.shelf.take(config, make)
    return model


def _ids(bench: Bench, config: LanguageModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, device=bench.clock.device)


def _scanned(config: LanguageModelConfig) -> float:
    """Exponentials of the scans of one token."""
    return config.n_layer * config.d_inner * config.d_state if config.layer == "mamba" else 0.0


def products(config: LanguageModelConfig, head: bool) -> float:
    """Operations of the matrix products of one token, of a Mamba or of a Transformer."""
    if config.layer == "mamba":
        return flops_per_token(config, head)
    d, inner = config.d_model, config.d_inner
    block = 4 * d * d + 3 * d * inner
    return 2.0 * (config.n_layer * block + (config.vocab_size * d if head else 0))


@torch.no_grad()
def _prompt(config: LanguageModelConfig, length: int, bench: Bench) -> Iterator[Row]:
    model, clock = _model(bench, config), bench.clock
    ids = [_ids(bench, config, 1, length) for _ in range(2)]
    state = model.initial_state(1)
    calls: list[Call] = [partial(_read, model, each, state) for each in ids]
    calls[0]()
    with clock.peak() as peak:
        calls[0]()
    times = clock.times(calls)
    work = Work(
        float(sum(each.nbytes for each in model.parameters())),
        length * _scanned(config),
        length * products(config, head=False),
    )
    rate = length / times.median
    yield row_of(bench, "forward", times, work, tokens_per_second=rate, peak_bytes=peak.bytes)


def _read(model: LanguageModel, ids: Tensor, state: Any) -> object:
    return model(ids, state=state, logits_to_keep=1)


@torch.no_grad()
def _token(config: LanguageModelConfig, streams: int, bench: Bench) -> Iterator[Row]:
    """A token of each stream after a prompt, the likeliest one taken on the device, by the host's clock.

    A Mamba reads one token before, since what it wrote or read does not change its time; a Transformer a prompt.
    """
    model, clock, plan = _model(bench, config), bench.clock, bench.plan
    before = 1 if config.layer == "mamba" else plan.prompt
    decoder = Decoder(model)
    state = model.initial_state(streams)
    first = model(_ids(bench, config, streams, before), state=state, logits_to_keep=1)
    logits, now, spare = first.logits[:, 0], first.state, None
    del first

    def write(tokens: int) -> None:
        nonlocal logits, now, spare
        for _ in range(tokens):
            logits, after = decoder.step(logits.argmax(-1), now, spare)
            now, spare = after, now

    write(WARM_UP_TOKENS)
    with clock.peak() as peak:
        pieces = [-(-plan.tokens // PIECES)] * PIECES
        seconds = tuple(clock.elapsed(partial(write, count)) / count for count in pieces)
    weights = sum(each.nbytes for each in model.parameters())
    held = sum(each.nbytes for each in tensors_of(now))
    # A Mamba's state is read and written; a Transformer's keys and values are read.
    moved = weights + (2 if config.layer == "mamba" else 1) * held
    work = Work(moved, streams * _scanned(config), streams * products(config, head=True))
    times = Times(seconds)
    yield row_of(
        bench,
        "token",
        times,
        work,
        tokens_per_second=streams / times.median,
        peak_bytes=peak.bytes,
        way=decoder.refusal or "kernels",
    )


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Return the tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | tuple | list):
        parts = state.values() if isinstance(state, dict) else state
        yield from itertools.chain.from_iterable(map(tensors_of, parts))


def _training(config: LanguageModelConfig, b: int, l: int, bench: Bench) -> Iterator[Row]:
    """One step: forward and loss under autocast, backward, AdamW; the weights are float32."""
    bench.shelf.clear()
    clock = bench.clock
    with clock.peak() as peak:
        model = fill(LanguageModel.unfilled(config, device=clock.device))
        fused = clock.device.type == "cuda"
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
        batches = [_ids(bench, config, b, l) for _ in range(2)]

        def step(ids: Tensor) -> object:
            with torch.autocast(clock.device.type, dtype=torch.bfloat16):
                loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        times = clock.times([partial(step, each) for each in batches], budget=1.0)
    tokens = b * l
    work = Work(0.0, 2 * tokens * _scanned(config), 3 * tokens * products(config, head=True))
    rate = tokens / times.median
    yield row_of(bench, "step", times, work, tokens_per_second=rate, peak_bytes=peak.bytes)
