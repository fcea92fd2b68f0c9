"""One token through a stack of blocks: the kernel against the reference in float64."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from implementations import bits_for_threads, isas, serving
from torch import Tensor

from adder.ops import native, quantize
from adder.ops.mamba_step import BlockWeights, Mamba2BlockWeights, MambaStack, StackWeights
from adder.ops.mamba_step.reference import mamba_step_reference

pytestmark = pytest.mark.skipif(native.module() is None, reason="adder was not compiled here")

LAYERS = ["mamba", "mamba2"]
KINDS = ["float32", "bfloat16", "int8", "int4"]
# How much rounding one vector changes a product, and the sums' own error in float32.
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-9, "int8": 1 / 254, "int4": 1 / 254}


def stack(
    kind: str,
    layer: str = "mamba",
    *,
    vocab: int = 37,
    m: int = 24,
    d: int = 40,
    n: int = 16,
    k: int = 4,
    r: int = 5,
    h: int = 4,
    g: int = 2,
    depth: int = 2,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> StackWeights:
    """r is of Mamba; h, g and the options are of Mamba-2. Without biases D is by channel, and the gate has no norm."""
    generator = torch.Generator().manual_seed(seed)
    small_type = torch.bfloat16 if kind == "bfloat16" else torch.float32

    def small(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(small_type)

    def matrix(rows: int, columns: int) -> Any:
        dense = torch.randn(rows, columns, generator=generator) * columns**-0.5
        return quantize(dense, kind) if kind in ("int8", "int4") else dense.to(small_type)  # type: ignore[arg-type]

    w = d + 2 * g * n
    rows, heads = (2 * d, h) if layer == "mamba" else (d + w + h, h)

    def mamba() -> BlockWeights:
        return BlockWeights(
            norm=small(m),
            in_proj=matrix(rows, m),
            in_bias=small(rows) if bias else None,
            conv_weight=small(d, k),
            conv_bias=small(d) if bias else None,
            x_proj=matrix(r + 2 * n, d),
            dt_proj=matrix(d, r),
            dt_bias=small(d),
            A_log=small(d, n, scale=0.5),
            D=small(d),
            out_proj=matrix(m, d),
            out_bias=small(m) if bias else None,
        )

    def mamba2() -> Mamba2BlockWeights:
        return Mamba2BlockWeights(
            norm=small(m),
            in_proj=matrix(rows, m),
            in_bias=small(rows) if bias else None,
            conv_weight=small(w, k),
            conv_bias=small(w) if bias else None,
            dt_bias=small(heads),
            A_log=small(heads, scale=0.5),
            D=small(heads if bias else d),
            gate_norm=small(d) if bias else None,
            out_proj=matrix(m, d),
            out_bias=small(m) if bias else None,
            groups=g,
            **options,
        )

    blocks = [mamba() if layer == "mamba" else mamba2() for _ in range(depth)]
    embedding = matrix(vocab + 3, m)
    return StackWeights(blocks, embedding, small(m), embedding, vocab, 1e-5)


def start(
    weights: StackWeights, b: int, seed: int = 1
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    conv, ssm = weights.blocks[0].state_shapes(b)
    states = [
        (
            torch.randn(conv, generator=generator).to(weights.norm.dtype),
            torch.randn(ssm, generator=generator),
        )
        for _ in weights.blocks
    ]
    return torch.randint(weights.vocab_size, (b,), generator=generator), states


def flat(logits: Tensor, states: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    named = {"logits": logits}
    for i, (conv, ssm) in enumerate(states):
        named |= {f"conv {i}": conv, f"ssm {i}": ssm}
    return named


@pytest.fixture(params=[*isas(), "avx512 without dot products"])
def served(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each instruction set, and AVX-512 without its instructions for bytes and bfloat16."""
    isa, without, _ = request.param.partition(" without")
    if isa not in isas():
        pytest.skip(f"this machine does not run {isa}")
    kernels: Any = native.module()
    with serving(f"cpu {isa}"):
        kernels.use_dot_products(not without)
        yield
        kernels.use_dot_products(True)


SIZES: list[dict[str, Any]] = [
    {},
    {"m": 1, "d": 1, "n": 1, "k": 1, "r": 1, "vocab": 1, "depth": 1},
    {"m": 33, "d": 65, "n": 3, "k": 2, "r": 2, "bias": False},
    {"m": 64, "d": 131, "n": 20, "k": 5, "r": 48, "vocab": 300},
    {"m": 31, "d": 17, "n": 64, "k": 3, "depth": 3},
    {"layer": "mamba2"},
    {"layer": "mamba2", "norm_before_gate": True, "dt_limit": (0.2, 1.5), "gate_eps": 0.1},
    {"layer": "mamba2", "d": 18, "h": 9, "g": 3, "n": 33, "k": 1, "bias": False},
    {"layer": "mamba2", "m": 1, "d": 1, "n": 1, "k": 2, "h": 1, "g": 1, "vocab": 1},
    {"layer": "mamba2", "m": 65, "d": 266, "h": 2, "g": 1, "n": 20, "vocab": 300},
    {"layer": "mamba2", "m": 33, "d": 140, "h": 70, "n": 3, "depth": 3},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("b", [1, 3, 9])
@pytest.mark.usefixtures("served", "poisoned")
def test_reference(kind: str, sizes: dict[str, Any], b: int) -> None:
    weights = stack(kind, **sizes)
    ids, states = start(weights, b)
    got = flat(*MambaStack(weights).step(ids, states))
    truth = flat(*mamba_step_reference(weights, ids, states))
    same = flat(*mamba_step_reference(weights, ids, states, torch.float32))
    stored = torch.finfo(weights.norm.dtype).eps
    for name, expected in truth.items():
        assert got[name].shape == expected.shape
        if not expected.numel():  # one tap keeps nothing
            continue
        largest = float(expected.abs().max())
        own = float((same[name] - expected).abs().max())
        # A vector next to a rounding's edge may fall to its other side: that is as large as the rounding.
        allowed = 4 * own + (8 * torch.finfo(torch.float32).eps + 4 * ROUNDING[kind]) * largest
        allowed += 0 if name.startswith("ssm") else stored * largest
        assert float((got[name] - expected).abs().max()) <= allowed, name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits(kind: str, layer: str) -> None:
    """For any number of threads, whichever streams lie beside, and in every instruction set but for its own sums."""
    weights = stack(kind, layer, m=64, d=132, vocab=600, depth=3)
    stepper = MambaStack(weights)
    ids, states = start(weights, 13)
    bits_for_threads(lambda: flat(*stepper.step(ids, states)))
    whole = flat(*stepper.step(ids, states))
    for rows in (slice(0, 1), slice(2, 7), slice(5, 13)):
        part = flat(*stepper.step(ids[rows], [(conv[rows], ssm[rows]) for conv, ssm in states]))
        for name, each in part.items():
            assert torch.equal(each, whole[name][rows]), name


@pytest.mark.parametrize("layer", LAYERS)
def test_streams_from_several_threads(layer: str) -> None:
    """Callers do not meet, though they share the pool and the stack."""
    weights = stack("int8", layer, m=64, d=132, vocab=600, depth=3)
    stepper = MambaStack(weights)

    def text(seed: int) -> list[int]:
        ids, states = start(weights, 1, seed)
        made = []
        for _ in range(30):
            logits, states = stepper.step(ids, states)
            ids = logits.argmax(-1)
            made.append(int(ids))
        return made

    before = torch.get_num_threads()
    expected = [text(seed) for seed in range(6)]
    try:
        torch.set_num_threads(2)
        with ThreadPoolExecutor(6) as callers:
            assert list(callers.map(text, range(6))) == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_is_changed_in_place(layer: str) -> None:
    weights = stack("float32", layer)
    ids, states = start(weights, 2)
    kept = [(conv.clone(), ssm.clone()) for conv, ssm in states]
    MambaStack(weights).step(ids, states)
    for before, after in zip(kept, states, strict=True):
        assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_change_of_the_weights_is_seen(layer: str) -> None:
    weights = stack("float32", layer)
    ids, states = start(weights, 2)
    stepper = MambaStack(weights)
    before, _ = stepper.step(ids, states)
    weights.blocks[1].A_log.mul_(2)
    after, _ = stepper.step(ids, states)
    fresh, _ = MambaStack(weights).step(ids, states)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_nan_is_not_lost(kind: str, layer: str) -> None:
    weights = stack(kind, layer)
    ids, states = start(weights, 2)
    states[0][1][1, 3, 2] = torch.nan
    logits, _ = MambaStack(weights).step(ids, states)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()


def wrong(change: Callable[[StackWeights], StackWeights]) -> StackWeights:
    return change(stack("float32"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w._replace(blocks=[]), "no blocks"),
        (lambda w: w._replace(norm=w.norm.double()), "a parameter is torch.float32"),
        (lambda w: w._replace(head=w.head.double()), "a matrix is torch.float64"),
        (lambda w: w._replace(head=w.head.T.contiguous().T), "strides"),
        (lambda w: w._replace(embedding=w.embedding.to("meta")), "on meta"),
    ],
)
def test_refused(change: Callable[[StackWeights], StackWeights], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MambaStack(wrong(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w._replace(head=w.head[:7]), r"head has shape \(7, 24\)"),
        (lambda w: w._replace(norm=w.norm[:7]), r"norm has shape \(7,\)"),
        (
            lambda w: w._replace(blocks=[w.blocks[0], w.blocks[1]._replace(D=w.blocks[1].D[1:])]),
            r"D of block 1 has shape \(39,\), expected \(40,\)",
        ),
        (
            lambda w: w._replace(blocks=[*w.blocks, *stack("float32", "mamba2").blocks]),
            r"block 2 is a Mamba2BlockWeights of sizes .*, and block 0 a BlockWeights of",
        ),
        (
            lambda w: w._replace(blocks=stack("float32", "mamba2", h=4, g=3).blocks),
            "4 heads must divide 40 inner channels, 3 groups the heads",
        ),
        (
            lambda w: w._replace(
                blocks=[b._replace(gate_norm=b.D) for b in stack("float32", "mamba2").blocks]
            ),
            r"gate_norm of block 0 has shape \(4,\), expected \(40,\)",
        ),
    ],
)
def test_wrong_shapes(change: Callable[[StackWeights], StackWeights], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MambaStack(wrong(change))


def test_wrong_states() -> None:
    weights = stack("float32")
    ids, states = start(weights, 2)
    stepper = MambaStack(weights)
    with pytest.raises(ValueError, match="states of 1 blocks, expected 2"):
        stepper.step(ids, states[:1])
    with pytest.raises(ValueError, match="ssm of block 1 in states is torch.float64"):
        stepper.step(ids, [states[0], (states[1][0], states[1][1].double())])
    with pytest.raises(
        ValueError, match=r"conv of block 0 in states is torch.float32 \(2, 3, 40\)"
    ):
        stepper.step(ids[:1], states)
    with pytest.raises(ValueError, match="ids is torch.int32"):
        stepper.step(ids.int(), states)
    with pytest.raises(ValueError, match=r"ids is torch.int64 \(2,\) on meta"):
        stepper.step(ids.to("meta"), states)
    for wrong_id in (-5, 10**8):
        with pytest.raises(ValueError, match=f"ids holds {wrong_id}, expected 0 to 39"):
            stepper.step(torch.tensor([0, wrong_id]), states)


def test_memory_stays_while_it_is_read() -> None:
    """A module that gives a parameter other memory does not take it from a stack."""
    weights = stack("float32")
    ids, states = start(weights, 2)
    stepper = MambaStack(weights)
    expected, _ = stepper.step(ids, states)
    weights.blocks[0].D.data = torch.full((40,), torch.nan)
    again, _ = stepper.step(ids, states)
    assert torch.equal(again, expected)


def test_into() -> None:
    weights = stack("float32")
    ids, states = start(weights, 2)
    stepper = MambaStack(weights)
    expected = flat(*stepper.step(ids, states))
    spare = [
        (torch.full_like(conv, torch.nan), torch.full_like(ssm, torch.nan)) for conv, ssm in states
    ]
    logits, after = stepper.step(ids, states, spare)
    assert all(
        a is b for one, two in zip(after, spare, strict=True) for a, b in zip(one, two, strict=True)
    )
    for name, each in flat(logits, after).items():
        assert torch.equal(each, expected[name])
    everything = torch.zeros(2 * states[0][1].numel())
    inside = (states[0][0].clone(), everything[: states[0][1].numel()].view_as(states[0][1]))
    shifted = (states[0][0].clone(), everything[4 : states[0][1].numel() + 4].view_as(inside[1]))
    for into in (states, [spare[0], spare[0]], [inside, shifted]):
        with pytest.raises(ValueError, match="apart from states and from itself"):
            stepper.step(ids, states, into)
