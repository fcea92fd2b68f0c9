"""A Mamba block, and whole models: reading a prompt, writing a token, one step of training; peak memory beside."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adder.benchmark.gpu import model_work, peer_models
from adder.benchmark.gpu.clock import Call, Times
from adder.benchmark.gpu.jobs import Bench, Job, graph_times, row_of, size_words
from adder.benchmark.gpu.made import fill, make_model, transformer_of
from adder.benchmark.gpu.peers import is_there
from adder.benchmark.gpu.plan import Plan
from adder.benchmark.gpu.results import Row
from adder.layers import Mamba
from adder.models import LanguageModel, LanguageModelConfig
from adder.models.decoder import Decoder

PIECES = 5  # in which the tokens are timed
WARM_UP_TOKENS = 6  # by then the graphs of both sets of states are made
Loss = Callable[[Any, Tensor], Tensor]


def block_jobs(plan: Plan, peers: dict[str, str]) -> Iterable[Job]:
    """Return the measurements of a block of Mamba, forward and backward under autocast."""
    makers: dict[str, Callable[[int, torch.device], nn.Module]] = {"adder": _our_block}
    if is_there(peers, "mamba_ssm"):
        makers["mamba_ssm"] = peer_models.mamba_block
    for shape in plan.blocks:
        for subject, make in makers.items():
            measure = partial(_block, shape, make)
            yield Job("block", "Mamba block", size_words(*shape), subject, measure)


def _block(
    shape: tuple[int, int, int], make: Callable[[int, torch.device], nn.Module], bench: Bench
) -> Iterator[Row]:
    clock, (b, l, d_model) = bench.clock, shape
    block = make(d_model, clock.device)
    parameters = list(block.parameters())

    def call(x: Tensor, dy: Tensor) -> object:
        with torch.autocast(clock.device.type, dtype=torch.bfloat16):
            out = block(x)
        y = out[0] if isinstance(out, tuple) else out
        return torch.autograd.grad(y, [x, *parameters], dy.to(y.dtype))

    calls: list[Call] = []
    for _ in range(2):
        x, dy = (torch.randn(b, l, d_model, device=clock.device) for _ in range(2))
        calls.append(partial(call, x.requires_grad_(), dy))
    calls[0]()  # the memory is looked at when nothing is compiled any more
    with clock.peak() as peak:
        calls[0]()
    work = model_work.of_block(d_model, b * l)
    yield row_of(bench, "both", clock.times(calls), work, peak_bytes=peak.bytes)


def _our_block(d_model: int, device: torch.device) -> nn.Module:
    with torch.device(device):
        return Mamba(d_model)


def jobs(plan: Plan, peers: dict[str, str]) -> Iterable[Job]:
    """Return the measurements of every model; beside the first of them a Transformer of its size, and training."""
    theirs = is_there(peers, "mamba_ssm")
    for number, (name, settings) in enumerate(plan.models.items()):
        config = LanguageModelConfig(**settings)
        yield from _reading_and_writing(plan, name, "adder", config, plan.streams)
        if number == 0:
            yield from _first(plan, name, config, theirs)
        if theirs:
            yield from _mamba_ssm(plan, name, config)


def _reading_and_writing(
    plan: Plan, name: str, subject: str, config: LanguageModelConfig, streams: tuple[int, ...]
) -> Iterator[Job]:
    prompt = partial(_prompt, config, plan.prompt)
    yield Job("models", name, _reading(plan.prompt), subject, prompt)
    for count in streams:
        token = partial(_token, config, count)
        yield Job("models", name, _writing(count), subject, token)


def _first(plan: Plan, name: str, config: LanguageModelConfig, theirs: bool) -> Iterator[Job]:
    for length in plan.long:
        yield Job("models", name, _reading(length), "adder", partial(_prompt, config, length))
    transformer = transformer_of(config)
    yield from _reading_and_writing(plan, name, "Transformer", transformer, plan.streams[:1])
    if plan.trained is None:
        return
    size = f"training {size_words(*plan.trained)}"
    for subject, each in (("adder", config), ("Transformer", transformer)):
        step = partial(_training, each, _our_trained, _our_loss)
        yield Job("models", name, size, subject, step)
    if theirs:
        step = partial(_training, config, peer_models.mamba_model, peer_models.mamba_loss)
        yield Job("models", name, size, "mamba_ssm", step)


def _mamba_ssm(plan: Plan, name: str, config: LanguageModelConfig) -> Iterator[Job]:
    prompt = partial(peer_models.prompt, config, plan.prompt)
    yield Job("models", name, _reading(plan.prompt), "mamba_ssm", prompt)
    for count in plan.streams:
        token = partial(peer_models.token, config, count)
        yield Job("models", name, _writing(count), "mamba_ssm", token)


def _reading(length: int) -> str:
    return f"prefill 1x{length}"


def _writing(streams: int) -> str:
    return f"decode, batch {streams}"


def _model(bench: Bench, config: LanguageModelConfig) -> LanguageModel:
    make = partial(make_model, config, torch.bfloat16, bench.clock.device)
    model: LanguageModel = bench.shelf.take(config, make)
    return model


def _ids(bench: Bench, config: LanguageModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, device=bench.clock.device)


@torch.no_grad()
def _prompt(config: LanguageModelConfig, length: int, bench: Bench) -> Iterator[Row]:
    model, clock = _model(bench, config), bench.clock
    state = model.initial_state(1)
    calls: list[Call] = [
        partial(_read, model, _ids(bench, config, 1, length), state) for _ in range(2)
    ]
    calls[0]()
    with clock.peak() as peak:
        calls[0]()
    times = clock.times(calls)
    work = model_work.of_prompt(config, weight_bytes(model), length)
    rate = length / times.median
    more: Row = {"tokens_per_second": rate, "peak_bytes": peak.bytes}
    yield row_of(bench, "forward", times, work, **more, **_made_of(config))


def _made_of(config: LanguageModelConfig) -> Row:
    """The Transformer is adder's own and no peer: no kernel of it is fused but that of its attention."""
    return {} if config.layer == "mamba" else {"made_of": "eager PyTorch"}


def _read(model: LanguageModel, ids: Tensor, state: Any) -> object:
    return model(ids, state=state, logits_to_keep=1)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(each.nbytes for each in model.parameters())


@torch.no_grad()
def _token(config: LanguageModelConfig, streams: int, bench: Bench) -> Iterator[Row]:
    """A token of each stream, the likeliest one taken on the device, by the host's clock.

    A Transformer has read a prompt; the time of a Mamba does not depend on what came before.
    """
    model, clock = _model(bench, config), bench.clock
    decoder, spare, now = Decoder(model), None, model.initial_state(streams)
    if config.layer != "mamba":
        text = _ids(bench, config, streams, bench.plan.prompt)
        now = model(text, state=now, logits_to_keep=1).state
    ids = _ids(bench, config, streams)
    logits, now = decoder.step(ids, now)

    def write(tokens: int) -> None:
        nonlocal logits, now, spare
        for _ in range(tokens):
            logits, after = decoder.step(logits.argmax(-1), now, spare)
            now, spare = after, now

    write(WARM_UP_TOKENS)
    count = -(-bench.plan.tokens // PIECES)
    with clock.peak() as peak:
        times = Times(tuple(clock.elapsed(partial(write, count)) / count for _ in range(PIECES)))
    work = model_work.of_token(config, weight_bytes(model), model_work.bytes_of(now), streams)
    more: Row = {"tokens_per_second": streams / times.median, "peak_bytes": peak.bytes}
    if decoder.refusal is None:  # what a token takes without what the host does for it
        graph, why = graph_times(bench, [lambda: decoder.step(ids, now)])
        more |= why if graph is None else {"device_seconds": graph.median}
    more |= _made_of(config)
    yield row_of(bench, "token", times, work, way=decoder.refusal or "kernels", **more)


def _our_trained(
    config: LanguageModelConfig, dtype: torch.dtype, device: torch.device
) -> LanguageModel:
    return fill(LanguageModel.unfilled(config, dtype, device))


def _our_loss(model: Any, ids: Tensor) -> Tensor:
    loss: Tensor = model(ids, labels=ids).loss
    return loss


def _training(
    config: LanguageModelConfig,
    make: Callable[[LanguageModelConfig, torch.dtype, torch.device], nn.Module],
    loss_of: Loss,
    bench: Bench,
) -> Iterator[Row]:
    """One step: forward and loss under autocast, backward, AdamW; the weights are float32.

    The memory is all of it: weights, gradients, moments, and what the backward pass keeps.
    """
    assert bench.plan.trained is not None
    bench.shelf.clear()
    bench.clock.free()
    clock, (b, l) = bench.clock, bench.plan.trained
    with clock.peak() as peak:
        model = make(config, torch.float32, clock.device)
        fused = clock.device.type == "cuda"
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)

        def step(ids: Tensor) -> None:
            with torch.autocast(clock.device.type, dtype=torch.bfloat16):
                loss = loss_of(model, ids)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        calls = [partial(step, _ids(bench, config, b, l)) for _ in range(2)]
        times = clock.times(calls, budget=5 * clock.budget)
    rate = b * l / times.median
    work = model_work.of_training(config, b * l)
    more: Row = {"tokens_per_second": rate, "peak_bytes": peak.bytes}
    yield row_of(bench, "step", times, work, **more, **_made_of(config))
