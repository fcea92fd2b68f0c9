"""Every number of `adder.explain` against brute force in float64."""

import numpy as np
import pytest
import torch

import adder
import adder.layers.mamba2
import adder.layers.selective
from adder.errors import UsageError
from adder.explanation import kernel, recall

KINDS = {
    "mamba": {},
    "mamba2": {"headdim": 4, "ngroups": 2},
    "mamba2-hdim": {"layer": "mamba2", "headdim": 4, "D_has_hdim": True, "dt_limit": (0.01, 0.05)},
    "mamba-normed": {"layer": "mamba", "mixer_norm_epsilon": 1e-5},
    "s4": {},
    "s4d": {},
}
LENGTH, TOKEN = 19, 13


def made(name: str, dtype: torch.dtype = torch.float64) -> adder.LanguageModel:
    torch.manual_seed(3)
    sizes = {"vocab_size": 11, "d_model": 8, "n_layer": 2, "d_state": 6, "layer": name}
    model = adder.LanguageModel(adder.LanguageModelConfig(**{**sizes, **KINDS.get(name, {})}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval().requires_grad_(False)


def ids() -> torch.Tensor:
    return torch.randint(0, 11, (LENGTH,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def scans(monkeypatch):
    """The arguments of every scan and what came out of it without its gate, as the model itself calls it."""
    seen = []

    def spy(module, name):
        operator = getattr(module, name)

        def recorded(*arguments, **options):
            y, _ = operator(*arguments, **{**options, "z": None})
            seen.append((arguments, options, y))
            return operator(*arguments, **options)

        monkeypatch.setattr(module, name, recorded)

    spy(adder.layers.selective, "selective_scan")
    spy(adder.layers.mamba2, "state_space_dual")
    return seen


def channels(arguments, options):
    """u, Delta (l d), A (d n), B, C (l d n) and D (d) of each channel on its own, from a scan's arguments."""
    u, dt, A, B, C, D = (each.detach().double() for each in arguments)
    u, dt, B, C = u[0], dt[0], B[0], C[0]
    bias = options.get("dt_bias", options.get("delta_bias"))
    step = torch.log1p(torch.exp(dt + bias.detach().double()))
    if u.ndim == 2:
        return u, step, A, B[:, None].expand(-1, len(A), -1), C[:, None].expand(-1, len(A), -1), D
    step = step.clamp(*options["dt_limit"])
    l, h, p = u.shape
    group = [head * B.shape[1] // h for head in range(h) for _ in range(p)]
    head = [head for head in range(h) for _ in range(p)]
    skip = D.flatten() if D.ndim == 2 else D[head]
    A = A[head][:, None].expand(-1, B.shape[-1])
    return u.reshape(l, -1), step[:, head], A, B[:, group], C[:, group], skip


def dense_row(u, step, A, B, C):
    """M[t, s] of every channel, the sums in the exponent taken as they stand."""
    whole = torch.zeros(LENGTH, LENGTH, u.shape[1], dtype=torch.float64)
    for t in range(LENGTH):
        for s in range(t + 1):
            decay = torch.exp(step[s + 1 : t + 1].sum(dim=0)[:, None] * A)
            whole[t, s] = (C[t] * decay * B[s]).sum(dim=-1) * step[s]
    return whole


SELECTIVE = ["mamba", "mamba-normed", "mamba2", "mamba2-hdim"]


@pytest.mark.parametrize("name", SELECTIVE)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_selective_row_is_the_dense_one(name, layer, scans):
    model = made(name)
    row = adder.explain(model, ids(), layer=layer, token=TOKEN).row
    assert (row.layer, row.token) == (layer, TOKEN)
    u, step, A, B, C, D = channels(*scans[layer][:2])
    dense = dense_row(u, step, A, B, C)[TOKEN, : TOKEN + 1]
    np.testing.assert_allclose(row.attention, dense, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(row.contributions, dense * u[: TOKEN + 1], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(row.skip, D * u[TOKEN], rtol=1e-12)
    assert np.abs(row.contributions).max() > 1e-3


@pytest.mark.parametrize("name", SELECTIVE)
@pytest.mark.parametrize("token", [0, TOKEN, LENGTH - 1])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_contributions_add_up_to_the_scans_own_output(name, token, dtype, close, scans):
    row = adder.explain(made(name, dtype), ids(), layer=1, token=token).row
    own = scans[1][2][0, token].flatten().double().detach().numpy()
    assert np.abs(row.contributions.sum(axis=0) + row.skip - own).max() <= close * np.abs(own).max()
    np.testing.assert_array_equal(row.output, row.contributions.sum(axis=0) + row.skip)
    assert row.contributions.shape == (token + 1, own.size)


@pytest.mark.parametrize("name", SELECTIVE)
def test_steps_and_time_constants_are_those_of_the_scan(name, scans):
    seen = adder.explain(made(name), ids())
    assert len(seen.layers) == 2
    for memory, (arguments, options, _) in zip(seen.layers, scans, strict=True):
        _, step, A, *_ = channels(arguments, options)
        heads = slice(None) if name.startswith("mamba-") or name == "mamba" else slice(0, None, 4)
        per_token = [float(step[t, heads].mean()) for t in range(LENGTH)]
        np.testing.assert_allclose(memory.steps, per_token, rtol=1e-12)
        assert memory.mean_step == pytest.approx(float(step[:, heads].mean()))
        assert memory.dt is None
        # what is left of a number after as many tokens of the mean step as its time constant says
        rate = (step.mean(dim=0)[:, None] * A)[heads]
        rate = rate[:, 0] if memory.time_constants.ndim == 1 else rate
        left = np.exp(rate.numpy() * memory.time_constants)
        np.testing.assert_allclose(left, np.exp(-1), rtol=1e-12)


@pytest.mark.parametrize("name", ["s4", "s4d"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_linear_row_is_the_kernel_read_backwards(name, dtype, close):
    model = made(name, dtype)
    inputs, outputs = [], []
    ssm = list(model.backbone.blocks())[1].mixer.layer
    handle = ssm.register_forward_hook(
        lambda _, given, out: inputs.append(given[0]) or outputs.append(out[0])
    )
    row = adder.explain(model, ids(), token=TOKEN).row
    handle.remove()
    u = inputs[0][0].double().detach().numpy()
    # The kernel by brute force: the recurrence on an impulse, which shares nothing with the convolution.
    impulse = torch.zeros(1, 15, 8, dtype=dtype)
    impulse[0, 0] = 1
    state, taps = ssm.initial_state(1), []
    for now in impulse.unbind(1):
        y, state = ssm(now[:, None], state)
        taps.append(y[0, 0].double().detach().numpy())
    taps[0] = taps[0] - ssm.D[0].double().detach().numpy()
    for s in range(TOKEN + 1):
        np.testing.assert_allclose(row.attention[s], taps[TOKEN - s], rtol=0, atol=30 * close)
        np.testing.assert_allclose(
            row.contributions[s], taps[TOKEN - s] * u[s], rtol=0, atol=30 * close
        )
    own = outputs[0][0, TOKEN].double().detach().numpy()
    assert np.abs(row.output - own).max() <= close * np.abs(own).max()
    np.testing.assert_allclose(kernel(model, 1, 15), np.stack(taps, axis=1), atol=30 * close)


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_time_constants_of_a_linear_layer(name):
    model = made(name)
    memory = adder.explain(model, ids()).layers[0]
    ssm = next(model.backbone.blocks()).mixer.layer
    assert memory.steps is None
    for i in range(8):
        dt = float(ssm.dt[i].exp())
        assert memory.dt[i] == pytest.approx(dt)
        for j in range(3):
            assert memory.time_constants[i, j] == pytest.approx(
                1 / (dt * float(ssm.A_real[i, j].exp()))
            )
    assert memory.mean_step == pytest.approx(memory.dt.mean())


def test_s4_fades_at_least_as_fast_as_its_time_constants_say():
    model = made("s4")
    longest = adder.explain(model, ids()).layers[0].time_constants.max(axis=1)
    taps = kernel(model, 0, 4000)
    after = np.ceil(longest * np.log(1e6)).astype(int)
    checked = 0
    for channel, end in zip(taps, after, strict=True):
        if end < 4000:
            assert np.abs(channel[end:]).max() < 1e-3 * np.abs(channel).max()
            checked += 1
    assert checked


def test_horizons_are_quantiles_that_occur():
    memory = adder.explain(made("mamba"), ids()).layers[0]
    ordered = np.sort(memory.time_constants.ravel())
    low, median, high = memory.horizons(quantiles=(0, 0.5, 1))
    assert low == pytest.approx(ordered[0])
    assert median == pytest.approx(ordered[ordered.size // 2 - 1])
    assert high == pytest.approx(ordered[-1])
    np.testing.assert_allclose(memory.horizons(0.01), np.log(100) * memory.horizons(), rtol=1e-12)
    with pytest.raises(UsageError, match="left is 1"):
        memory.horizons(1)
    with pytest.raises(UsageError, match=r"quantiles are \(2,\)"):
        memory.horizons(quantiles=(2,))


def test_what_never_fades_has_an_infinite_horizon():
    model = made("mamba")
    next(model.backbone.blocks()).mixer.A_log.fill_(-1e4)  # A = 0
    memory = adder.explain(model, ids()).layers[0]
    assert np.isinf(memory.horizons()).all()


def test_numbers_that_are_not_finite_are_refused():
    model = made("s4d")
    list(model.backbone.blocks())[1].mixer.layer.C.fill_(torch.nan)
    with pytest.raises(UsageError, match="layer 1 took in numbers that are not finite"):
        adder.explain(model, ids())


def test_shares_and_the_most_taken_in():
    seen = adder.explain(made("mamba"), ids(), token=TOKEN)
    row = seen.row
    sizes = [sum(abs(x) for x in per_source) for per_source in row.contributions.tolist()]
    shares = [size / sum(sizes) for size in sizes]
    np.testing.assert_allclose(row.shares, shares, rtol=1e-12)
    best = sorted(range(TOKEN + 1), key=lambda s: -shares[s])[:3]
    assert seen.layers[-1].most(3) == [(s, pytest.approx(shares[s])) for s in best]
    other = adder.explain(made("mamba"), ids(), layer=0, token=TOKEN).row
    np.testing.assert_array_equal(seen.layers[0].shares, other.shares)


def test_the_model_stays_as_it_was_and_can_be_asked_in_numpy_or_lists():
    model = made("mamba2")
    before = model(ids()[None]).logits
    first, second = adder.explain(model, ids()), adder.explain(model, ids().tolist())
    np.testing.assert_array_equal(first.row.contributions, second.row.contributions)
    assert first.row.token == LENGTH - 1
    assert first.kind == "mamba2"
    assert torch.equal(model(ids()[None]).logits, before)
    assert not any(block.mixer._forward_pre_hooks for block in model.backbone.blocks())


def test_rounded_weights_are_read_as_the_model_reads_them():
    from adder.models import quantize_model

    torch.manual_seed(0)
    config = adder.LanguageModelConfig(vocab_size=11, d_model=64, n_layer=1, d_state=4)
    model = quantize_model(adder.LanguageModel(config).eval(), "int8")
    row = adder.explain(model, ids()).row
    assert np.isfinite(row.contributions).all()


def legs() -> adder.LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "d_model": 4, "n_layer": 1, "d_state": 16, "layer": "s4"}
    return adder.LanguageModel(adder.LanguageModelConfig(**sizes, dt_min=2e-3, dt_max=2e-2)).eval()


def test_recall_draws_the_recent_past_from_a_state():
    model = legs()
    ssm = next(model.backbone.blocks()).mixer.layer
    t = torch.arange(3000.0)
    u = torch.stack([torch.sin(t / 60 + phase) for phase in range(4)], dim=-1)[None]
    _, state = ssm(u, ssm.initial_state(1))
    ago = np.array([20.5, 40.5, 60.5])
    drawn = recall(model, 0, state, ago)[0]
    past = u[0, [-21, -41, -61]].T.numpy()
    assert np.abs(drawn - past).max() < 0.1
    assert np.abs(past).max() > 0.9


def test_recall_refuses_what_is_no_legs():
    model = legs()
    state = torch.zeros(1, 4, 16, dtype=torch.float64)
    with torch.no_grad():
        next(model.backbone.blocks()).mixer.layer.A_imag.mul_(1.01)
    with pytest.raises(UsageError, match=r"A of the layer is 1.0e-02 from HiPPO-LegS's"):
        recall(model, 0, state, [1.0])
    with pytest.raises(UsageError, match=r"state is \(1, 2, 3\), expected \(batch, 4, 16\)"):
        recall(model, 0, state.new_zeros(1, 2, 3), [1.0])
    with pytest.raises(UsageError, match="expected an S4"):
        recall(made("s4d"), 0, state, [1.0])


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru"])
def test_other_layers_are_refused_by_name(kind):
    model = adder.LanguageModel(
        adder.LanguageModelConfig(vocab_size=11, d_model=8, n_layer=1, layer=kind)
    )
    with pytest.raises(UsageError, match=f"layer is {kind}, expected .*mamba, mamba2, s4, s4d"):
        adder.explain(model, [1, 2])


@pytest.mark.refuses
def test_bad_arguments_are_refused_by_name():
    model = made("mamba")
    for arguments, options, message in [
        ([[1]], {}, "ids has 1 tokens, expected at least 2"),
        ([[]], {}, "ids has 0 tokens"),
        ([[[1, 2]]], {}, r"shape \(1, 2\)"),
        ([[1.0, 2.0]], {}, "float64, expected .* whole numbers"),
        ([[1, 11]], {}, "ids holds 11, expected 0 to 10"),
        ([[-1, 1]], {}, "ids holds -1"),
        ([[1, 2]], {"token": 2}, "token is 2, expected a whole number from -2 to 1"),
        ([[1, 2]], {"layer": -3}, "layer is -3, expected a whole number from -2 to 1"),
        ([[1, 2]], {"layer": True}, "layer is True"),
    ]:
        with pytest.raises(UsageError, match=message):
            adder.explain(model, *arguments, **options)
    with pytest.raises(UsageError, match="model is Linear"):
        adder.explain(torch.nn.Linear(1, 1), [1, 2])
    with pytest.raises(UsageError, match="length is 0"):
        kernel(made("s4d"), 0, 0)
    with pytest.raises(UsageError, match="the model is mamba, expected"):
        kernel(model, 0, 5)


def test_a_bidirectional_mamba_has_no_one_scan():
    with pytest.raises(UsageError, match="two scans"):
        adder.Mamba(8, bidirectional=True).scan_inputs(torch.zeros(1, 2, 8))
