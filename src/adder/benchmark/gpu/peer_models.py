"""mamba_ssm's block and model of our sizes, where it is installed."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adder.benchmark.gpu import model_work
from adder.benchmark.gpu.clock import Call, Times
from adder.benchmark.gpu.jobs import Bench, row_of
from adder.benchmark.gpu.results import Row
from adder.models import LanguageModelConfig

TURNS = 3


def mamba_block(d_model: int, device: torch.device) -> nn.Module:
    """mamba_ssm's Mamba."""
    from mamba_ssm import Mamba

    block: nn.Module = Mamba(d_model, device=device)
    return block


def mamba_model(config: LanguageModelConfig, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """mamba_ssm's language model."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    sizes = {"d_model": config.d_model, "n_layer": config.n_layer, "vocab_size": config.vocab_size}
    model: nn.Module = MambaLMHeadModel(MambaConfig(**sizes), device=device, dtype=dtype)
    return model


def mamba_loss(model: Any, ids: Tensor) -> Tensor:
    """The loss of the next token; its model returns logits alone."""
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits.float(), ids[:, 1:].flatten())


def _model(bench: Bench, config: LanguageModelConfig) -> Any:
    make = partial(mamba_model, config, torch.bfloat16, bench.clock.device)
    return bench.shelf.take(("mamba_ssm", config), make)


@torch.no_grad()
def prompt(config: LanguageModelConfig, length: int, bench: Bench) -> Iterator[Row]:
    """A prompt, and the logits of its last token."""
    model, clock = _model(bench, config), bench.clock
    ids = torch.randint(config.vocab_size, (1, length), device=clock.device)
    calls: list[Call] = [partial(model, ids, num_last_tokens=1)]
    calls[0]()
    with clock.peak() as peak:
        calls[0]()
    times = clock.times(calls)
    weights = sum(each.nbytes for each in model.parameters())
    work = model_work.of_prompt(config, weights, length)
    rate = length / times.median
    yield row_of(bench, "forward", times, work, tokens_per_second=rate, peak_bytes=peak.bytes)


@torch.no_grad()
def token(config: LanguageModelConfig, streams: int, bench: Bench) -> Iterator[Row]:
    """A token of each stream by its generate with CUDA graphs: a long text less a short one."""
    model, clock = _model(bench, config), bench.clock
    ids = torch.randint(config.vocab_size, (streams, 1), device=clock.device)
    few, many = 2, 2 + bench.plan.tokens
    # Its cache is made for the longest text, and once: both run in the same one.
    write = partial(model.generate, input_ids=ids, cg=clock.device.type == "cuda", top_k=1)
    write(max_length=many)
    seconds = []
    with clock.peak() as peak:
        for _ in range(TURNS):
            spent = [clock.elapsed(partial(write, max_length=size)) for size in (few, many)]
            seconds.append((spent[1] - spent[0]) / (many - few))
    times = Times(tuple(seconds))
    weights = sum(each.nbytes for each in model.parameters())
    work = model_work.of_token(config, weights, model_work.state_bytes(config, streams), streams)
    more: Row = {"tokens_per_second": streams / times.median, "peak_bytes": peak.bytes}
    yield row_of(bench, "token", times, work, **more)
