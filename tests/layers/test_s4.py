"""S4 and S4D: every view of a layer is the same map, and each behaviour of a complete S4 implementation."""

import doctest
import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adder import S4, S4D, StateSpace
from adder.errors import UsageError
from adder.layers import parameter_groups
from adder.layers.linear_ssm import BLOCK, LinearSSM
from adder.layers.linear_ssm_options import TRANSFORMS

Make = Callable[..., LinearSSM]
LAYERS: dict[str, Make] = {
    "S4": S4,
    "S4 legt": lambda *a, **k: S4(*a, measure="legt", **k),
    "S4 fourier": lambda *a, **k: S4(*a, measure="fourier", **k),
    "S4 rank 3": lambda *a, **k: S4(*a, measure="hippo", rank=3, **k),
    "S4 dplr": lambda *a, **k: S4(*a, measure="dplr-lin", rank=2, **k),
    "S4D": S4D,
    "S4D bilinear": lambda *a, **k: S4D(*a, init="inv", method="bilinear", **k),
    "S4D untied": lambda *a, **k: S4D(*a, init="diag", dt_tie=False, **k),
    "S4D real": lambda *a, **k: S4D(*a, init="real", real=True, **k),
}
BOTH = [S4, S4D]


@pytest.fixture(params=LAYERS)
def make(request: pytest.FixtureRequest) -> Make:
    """One layer after another, with 6 channels and a state of 8 unless told otherwise."""
    torch.manual_seed(0)
    layer = LAYERS[request.param]
    return lambda channels=6, state_size=8, **options: layer(channels, state_size, **options)


def signal(length: int, channels: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, length, channels, generator=torch.Generator().manual_seed(1)).to(dtype)


def in_pieces(layer: LinearSSM, u: Tensor, sizes: int | list[int], **options: Any) -> Tensor:
    state, outputs = layer.initial_state(len(u)), []
    for piece in u.split(sizes, dim=1):
        y, after = layer(piece, state, **options)
        assert after is not None
        outputs.append(y)
        state = after
    return torch.cat(outputs, dim=1)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


PIECES = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, [100, 50], [30, 70, 50], [149, 1]]


@pytest.mark.parametrize(
    "options", [{}, {"channels_out": 3}, {"n_ssm": 2, "bandlimit": 0.5}, {"l_max": 41}]
)
def test_convolution_is_recurrence(make: Make, options: dict[str, Any]) -> None:
    if not make().complex_state:  # a real layer has no frequencies to limit
        options = {name: value for name, value in options.items() if name != "bandlimit"}
    layer = make(**options).double()
    u = signal(150)
    whole, none = layer(u)
    assert none is None
    for sizes in PIECES:
        assert error(in_pieces(layer, u, sizes), whole) < 1e-12, sizes


@pytest.mark.parametrize("sizes", [1, 64, [100, 412]])
def test_float32_at_full_size(make: Make, sizes: int | list[int]) -> None:
    """n = 64, length 512: state-spaces/s4 errs by 7.4e-5 (DPLR), 4.6e-6 (diagonal), and 10 % in its diagonal mode."""
    layer, u = make(3, 64), signal(512, 3, torch.float32)
    with torch.no_grad():
        assert error(in_pieces(layer, u, sizes), layer(u)[0]) < 1e-6


def test_gradients_do_not_depend_on_the_view(make: Make) -> None:
    layer, u = make().double(), signal(40).requires_grad_()
    weights = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = [u, *layer.parameters()]
    whole = torch.autograd.grad((layer(u)[0] * weights).sum(), wanted)
    for sizes in (1, 20, [3, 37]):
        parts = torch.autograd.grad((in_pieces(layer, u, sizes) * weights).sum(), wanted)
        for got, expected in zip(parts, whole, strict=True):
            assert error(got, expected) < 1e-10


def test_gradients_reach_the_state(make: Make) -> None:
    layer = make(2, 4).double()
    state = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)

    def last(state: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        y, after = layer(u, state)
        assert after is not None
        return y, after

    for length in (2, 20):
        assert torch.autograd.gradcheck(last, (state, signal(length, 2).requires_grad_()))


@pytest.mark.parametrize("kind", BOTH)
def test_the_kernel_is_that_of_the_dense_system(kind: Make) -> None:
    """From the stored halves to a dense real (A, B, C), through `StateSpace`, to the same impulse response."""
    torch.manual_seed(0)
    layer = kind(2, 8).double()
    Lambda, B, C = (
        layer.eigenvalues(),
        layer._spread(layer._number(layer.B)),
        layer._number(layer.C),
    )
    P = (
        layer._spread(layer._number(layer.P))
        if isinstance(layer, S4)
        else torch.zeros(1, 2, 4) + 0j
    )
    method = "bilinear" if kind is S4 else "zoh"
    Lambda, P, B, C = (each.detach() for each in (Lambda, P, B, C))
    for h, dt in enumerate(layer.step_sizes().tolist()):
        A = torch.block_diag(
            *[torch.tensor([[z.real, -z.imag], [z.imag, z.real]]).double() for z in Lambda[h]]
        )
        p = torch.view_as_real(P[0, h]).flatten()
        b = torch.view_as_real(B[h]).flatten()
        c = torch.view_as_real(2 * C[0, h].conj()).flatten()
        system = StateSpace((A - 2 * p.outer(p)).detach(), b.detach(), c.detach())
        kernel = system.discretize(dt, method).kernel(300).flatten()
        assert error(layer.kernel(300)[0, h], kernel) < 1e-12


def test_forward_changes_nothing_and_all_lengths_agree(make: Make) -> None:
    layer = make().double()
    before = {name: each.clone() for name, each in layer.state_dict().items()}
    long, _ = layer(signal(400))
    short, _ = layer(signal(400)[:, :97])
    assert error(short, long[:, :97]) < 1e-12
    in_pieces(layer, signal(40), 13)
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(each, before[name]) for name, each in layer.state_dict().items())


def test_state_dict_round_trip(make: Make) -> None:
    layer, other = make(), make()
    layer(signal(9, dtype=torch.float32))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.kernel(50), other.kernel(50))
    assert all(each.dtype == torch.float32 for each in layer.state_dict().values())


@pytest.mark.parametrize("rate", [2.0, 0.5, 1.7])
def test_another_sampling_rate_is_another_step_size(make: Make, rate: float) -> None:
    layer, other = make().double(), make().double()
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        other.dt += math.log(rate)
    assert error(layer.kernel(60, rate), other.kernel(60)) < 1e-12
    u = signal(40)
    assert error(layer(u, rate=rate)[0], other(u)[0]) < 1e-12
    assert error(in_pieces(layer, u, [17, 23], rate=rate), other(u)[0]) < 1e-12


def test_twice_the_rate_skips_every_second_tap() -> None:
    """Zero-order hold: the kernel at 2 dt is dt-independent in shape, so for small steps every second tap agrees."""
    torch.manual_seed(0)
    layer = S4D(3, 8, dt_min=1e-5, dt_max=1e-5).double()
    assert error(layer.kernel(50, 2.0) / 2, layer.kernel(100)[..., ::2]) < 1e-2


@pytest.mark.parametrize("length", [39, 40, 9])
def test_l_max_is_a_finite_impulse_response(make: Make, length: int) -> None:
    layer = make(l_max=13).double()
    impulse = torch.zeros(2, length, 6, dtype=torch.float64)
    impulse[:, 0] = 1
    y, _ = layer(impulse)
    assert (y[:, 13:].abs() < 1e-14).all()
    assert error(y[0, 1:13].mT, layer.kernel(13)[0, :, 1 : min(13, length)]) < 1e-12


def test_bidirectional_reads_the_future_strictly(make: Make) -> None:
    layer = make(bidirectional=True, channels_out=2).double()
    u = signal(37)
    past, future = layer.kernel(37).chunk(2)
    padded = torch.zeros(2, 37, 2, 6, dtype=torch.float64)
    for t in range(37):
        for j in range(t + 1):
            padded[:, t] += past[..., j] * u[:, t - j].unsqueeze(1)
        for j in range(1, 37 - t):
            padded[:, t] += future[..., j - 1] * u[:, t + j].unsqueeze(1)
    expected = padded + layer.D * u.unsqueeze(2)
    assert error(layer(u)[0], expected.flatten(2)) < 1e-12
    with pytest.raises(UsageError, match="bidirectional layer .* has no state"):
        layer.initial_state(2)


def test_outputs_are_c_then_h_or_the_other_way(make: Make) -> None:
    layer = make(channels_out=2).double()
    u = signal(20)
    y = layer(u)[0].unflatten(-1, (2, 6))
    taps = layer.kernel(20)
    for c in range(2):
        last = torch.einsum("hj,bjh->bh", taps[c].flip(-1), u) + layer.D[c] * u[:, -1]
        assert error(y[:, -1, c], last) < 1e-12
    layer.swap_channels = True
    assert torch.equal(layer(u)[0].unflatten(-1, (6, 2)).mT, y)


def test_copies_go_round() -> None:
    for layer in (S4(6, 4, n_ssm=2, measure="hippo"), S4D(6, 4, n_ssm=2, init="diag")):
        assert layer.A_real.shape == (2, 2)
        Lambda = layer.eigenvalues()
        assert torch.equal(Lambda[0], Lambda[2])
        assert not torch.equal(Lambda[0], Lambda[1])
        with pytest.raises(UsageError, match=r"n_ssm 4 does not divide channels 6"):
            type(layer)(6, 4, n_ssm=4)


@pytest.mark.parametrize("transform", ["exp", "softplus", "relu", "sigmoid"])
@pytest.mark.parametrize("kind", BOTH)
def test_no_step_makes_it_unstable(kind: Make, transform: str) -> None:
    """1000 steps of size 1 in random directions; with P tied to itself, every eigenvalue of the dense A stays left."""
    torch.manual_seed(0)
    layer = kind(2, 16, real_transform=transform).double()
    with torch.no_grad():
        for _ in range(1000):
            for each in layer.parameters():
                each += torch.randn_like(each).sign()
        largest = layer.eigenvalues().real.max()
        assert largest <= 0 if transform == "relu" else largest < 0
        if kind is S4:
            P = layer._spread(layer._number(layer.P))
            full = torch.cat([layer.eigenvalues(), layer.eigenvalues().conj()], -1)
            P = torch.cat([P, P.conj()], -1)
            A = torch.diag_embed(full) - torch.einsum("rhi,rhj->hij", P, P.conj())
            assert torch.linalg.eigvals(A).real.max() < 1e-9 * A.abs().max()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"dt_transform": "softplus"}, {"dt_fast": True}, {"deterministic": True}]
)
def test_initial_step_sizes_lie_inside_the_bounds(tie: bool, options: dict[str, Any]) -> None:
    layer = S4D(200, 4, dt_min=0.002, dt_max=0.3, dt_tie=tie, **options)
    steps = layer.step_sizes()
    assert steps.shape == ((200,) if tie else (200, 2))
    assert steps.min() >= 0.002 * (1 - 1e-5)
    assert steps.max() <= 0.3 * (1 + 1e-5)
    assert (
        0.01 < steps.log().mean().exp() < 0.06
    )  # log-uniform: the middle is the geometric mean, 0.024


def test_deterministic_layers_are_alike(make: Make) -> None:
    layers = []
    for _ in range(2):
        layers.append(make(deterministic=True))
        if isinstance(layers[0], S4):  # dplr starts draw P, and nothing else is drawn
            layers[-1].load_state_dict({**layers[-1].state_dict(), "P": layers[0].P})
    u = signal(30, dtype=torch.float32)
    assert torch.equal(layers[0](u)[0], layers[1](u)[0])


def test_optimiser_settings(make: Make) -> None:
    layer = make(lr={"dt": 1e-3, "A": 1e-4, "C": 2e-3})
    groups = parameter_groups(nn.Sequential(layer), lr=0.01, weight_decay=0.05)
    found = {name: group for group in groups for name in group["names"]}
    for name, group in found.items():
        kind = name.removeprefix("0.").split("_")[0]
        assert group["weight_decay"] == (0.05 if kind == "C" else 0), name
        assert group["lr"] == {"dt": 1e-3, "A": 1e-4, "C": 2e-3}.get(kind, 0.01), name
    assert len(found) == len(list(layer.parameters()))


def test_a_learning_rate_of_zero_freezes(make: Make) -> None:
    layer = make(lr=0.0)
    assert {name for name, _ in layer.named_parameters()} == {"C", "D"}
    assert {"dt", "A_real", "B"} <= {name for name, _ in layer.named_buffers()}
    assert make(lr=1e-3).state_dict().keys() == layer.state_dict().keys()


@pytest.mark.parametrize("kind", BOTH)
def test_band_limit_silences_modes(kind: Make) -> None:
    """Modes above the limit contribute exactly 0: whatever their C is, the kernel has the same bits."""
    torch.manual_seed(0)
    start = {"init": "lin"} if kind is S4D else {"measure": "dplr-lin"}
    layer = kind(4, 8, bandlimit=1.0, dt_min=0.6, dt_max=0.6, **start).double()
    loud = layer.step_sizes()[0] * layer.eigenvalues()[0].imag / (2 * math.pi) < 0.5
    assert 0 < loud.sum() < len(loud)
    before = layer.kernel(40)
    with torch.no_grad():
        layer.C[..., ~loud, :] = 1e9
    assert torch.equal(layer.kernel(40), before)
    with torch.no_grad():
        layer.C[..., loud, :] *= 2
    assert not torch.equal(layer.kernel(40), before)


def test_transforms_keep_their_digits() -> None:
    """softplus written log(1 + e^x) is 0 below -17 in float32 and infinite from 89; its naive inverse fails as well."""
    forward, inverse = TRANSFORMS["softplus"]
    x = torch.tensor([-20.0, 100.0], requires_grad=True)
    y = forward(x)
    assert y[0].item() == pytest.approx(2.0611537e-9, rel=1e-6)
    assert y[1].item() == 100
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    small = torch.tensor([1e-8, 1e-3, 1.0, 100.0])
    assert ((forward(inverse(small)) - small).abs() / small).max() < 1e-6


def test_a_slow_decay_survives_low_precision() -> None:
    """1000 steps of decay e^-0.001 under bfloat16 autocast: .368, where bfloat16 itself would keep 1.0."""
    layer = S4D(1, 1, init="real", real=True, dt_min=1e-3, dt_max=1e-3, deterministic=True)
    u = torch.zeros(1, 1000, 1)
    u[0, 0] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        first, state = layer(u[:, :1], layer.initial_state(1))
        start = state.clone()  # type: ignore[union-attr]
        for piece in u[:, 1:].split(100, dim=1):
            _, state = layer(piece.bfloat16(), state)
    assert first.isfinite().all()
    assert (state / start).item() == pytest.approx(math.exp(-0.999), rel=1e-5)  # type: ignore[operator]


def test_made_on_the_device_that_is_asked_for() -> None:
    for kind in BOTH:
        with torch.device("meta"):
            layer = kind(4, 8)
        assert {each.device.type for each in layer.parameters()} == {"meta"}


def test_real_is_complex_without_imaginary_parts() -> None:
    """Half as many numbers make one mode of a complex layer, which also counts twice."""
    torch.manual_seed(0)
    real = S4D(3, 4, init="real", real=True).double()
    paired = S4D(3, 8, init="real").double()
    with torch.no_grad():
        paired.dt.copy_(real.dt)
        paired.C.copy_(torch.stack([real.C, torch.zeros_like(real.C)], -1) / 2)
    assert error(paired.kernel(50), real.kernel(50)) < 1e-12


def test_under_autocast_kernel_and_state_stay_wide(make: Make) -> None:
    layer, u = make(), signal(30, dtype=torch.float32)
    expected = layer(u)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(u.bfloat16(), layer.initial_state(2))
        assert layer.kernel(30).dtype == torch.float32
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float64)  # type: ignore[union-attr]
    assert error(y.float(), expected) < 2e-2


def test_dropout_on_the_kernel() -> None:
    layer, u = S4D(6, 8, drop_kernel=0.5), signal(30, dtype=torch.float32)
    assert not torch.equal(layer(u)[0], layer(u)[0])
    with pytest.raises(
        UsageError, match=r"drop_kernel in training has no recurrence: call eval\(\)"
    ):
        layer(u, layer.initial_state(2))
    layer.eval()
    assert error(in_pieces(layer, u, 7), layer(u)[0]) < 1e-5


@pytest.mark.parametrize("name", ["s4", "s4d", "s4_block"])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"adder.layers.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
