"""What a state still holds of the past: every number against the model's own states and dense least squares."""

import numpy as np
import pytest
import torch

import adder
from adder.explanation import recall as legs_recall
from adder.explanation.held import PRECISION, linear_recall
from adder.layers import S4D

from .test_explain import LENGTH, SELECTIVE, TOKEN, channels, ids, legs, made, scans

__all__ = ["scans"]  # a fixture


def dense(G, u):
    """u^ and kept of one channel from G (n, t + 1), by the normal equations of the inputs, not of the state.

    The posterior of u ~ N(0, 1) given G u + noise has the covariance (I + G^T G / e^2)^-1.
    """
    G = G / np.linalg.norm(G, axis=1, keepdims=True)
    covariance = np.linalg.inv(np.eye(G.shape[1]) + G.T @ G / PRECISION**2)
    drawn = np.linalg.lstsq(
        np.vstack([G / PRECISION, np.eye(G.shape[1])]),
        np.concatenate([G @ u / PRECISION, np.zeros(G.shape[1])]),
        rcond=None,
    )[0]
    return drawn, 1 - np.diag(covariance)


def compare(found, i, G, u):
    """One channel of what was found, against G (n, t + 1) and u."""
    drawn, kept = dense(G, u)
    np.testing.assert_allclose(found.inputs[:, i], u, rtol=1e-12)
    np.testing.assert_allclose(found.state[i], G @ u, rtol=1e-9, atol=1e-12)
    # The normal equations lose what is left of float64 behind 1 / PRECISION^2.
    np.testing.assert_allclose(found.drawn[:, i], drawn, atol=1e-8 * np.abs(u).max())
    np.testing.assert_allclose(found.kept[:, i], kept, atol=1e-8)


@pytest.mark.parametrize("name", SELECTIVE)
def test_of_a_selective_layer(name, scans):
    seen = adder.explain(made(name), ids(), layer=1, token=TOKEN)
    u, step, A, B, _, _ = (each.numpy() for each in channels(*scans[1][:2]))
    assert seen.recall.kept.shape == (TOKEN + 1, u.shape[1])
    for i in range(u.shape[1]):
        G = np.empty((A.shape[1], TOKEN + 1))
        for s in range(TOKEN + 1):
            left = np.exp(step[s + 1 : TOKEN + 1, i].sum() * A[i])
            G[:, s] = left * step[s, i] * B[s, i]
        compare(seen.recall, i, G, u[: TOKEN + 1, i])
    np.testing.assert_allclose(seen.layers[1].kept, seen.recall.kept.mean(axis=1))
    assert seen.layers[1].held == pytest.approx(seen.recall.held.mean())
    other = adder.explain(made(name), ids(), layer=0, token=TOKEN)
    np.testing.assert_allclose(seen.layers[0].kept, other.recall.kept.mean(axis=1))


@pytest.mark.parametrize("name", ["mamba", "mamba2", "s4", "s4d"])
def test_the_state_is_the_models_own(name):
    model = made(name)
    seen = adder.explain(model, ids(), layer=1, token=TOKEN)
    state = model(ids()[None, : TOKEN + 1], state=model.initial_state(1)).state
    numbers = []

    def collect(tree):
        if isinstance(tree, torch.Tensor):
            numbers.append(tree)
        else:
            for each in tree.values() if isinstance(tree, dict) else tree:
                collect(each)

    collect(state)
    size = seen.recall.state.size
    own = [each.double().numpy().ravel() for each in numbers if each.numel() == size][-1]
    mine = seen.recall.state
    if name == "mamba2" and not np.allclose(mine.ravel(), own):
        h, n = 4, mine.shape[1]  # heads of n x p
        mine = mine.reshape(h, -1, n).swapaxes(1, 2)
    np.testing.assert_allclose(mine.ravel(), own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_of_a_linear_layer(name):
    model = made(name)
    ssm = list(model.backbone.blocks())[1].mixer.layer
    inputs = []
    handle = ssm.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    seen = adder.explain(model, ids(), layer=1, token=TOKEN)
    handle.remove()
    u = inputs[0][0].numpy()
    # What an input leaves in the state, by the recurrence: an impulse, and zeros behind it.
    now, left = torch.ones(1, 1, 8, dtype=torch.float64), []
    state = ssm.initial_state(1)
    for _ in range(TOKEN + 1):
        _, state = ssm(now, state)
        left.append(state[0].numpy())
        now = torch.zeros_like(now)
    for i in range(8):
        G = np.stack([left[TOKEN - s][i] for s in range(TOKEN + 1)], axis=1)
        compare(seen.recall, i, G, u[: TOKEN + 1, i])
    assert seen.kernel.shape == (8, TOKEN + 1)
    np.testing.assert_allclose(
        seen.kernel, adder.explanation.kernel(model, 1, TOKEN + 1), atol=1e-13
    )


def test_selective_models_have_no_kernel():
    assert adder.explain(made("mamba"), ids()).kernel is None


@pytest.mark.parametrize("name", ["mamba", "mamba2", "s4", "s4d"])
def test_kept_is_a_part_and_no_more_than_the_state_has_numbers(name):
    recall = adder.explain(made(name), ids()).recall
    assert recall.kept.min() >= 0
    assert recall.kept.max() <= 1 + 1e-12
    assert recall.held.max() <= recall.state.shape[1] + 1e-9
    assert recall.held.min() > 0.5  # something is known of a past that is not forgotten
    early = adder.explain(made(name), ids(), token=2).recall
    assert early.held.max() <= 3 + 1e-9  # there are three tokens to know of


def test_few_tokens_are_known_wholly_and_what_faded_is_not():
    model = made("s4d")
    ssm = list(model.backbone.blocks())[1].mixer.layer
    ssm.dt.fill_(np.log(0.5))
    recall = adder.explain(model, ids(), token=1).recall
    np.testing.assert_allclose(recall.kept, 1, atol=1e-3)
    np.testing.assert_allclose(recall.drawn, recall.inputs, atol=1e-2)
    ssm.dt.fill_(np.log(50.0))  # one step, and all is gone
    recall = adder.explain(model, ids()).recall
    assert recall.kept[:-1].max() < 1e-3
    assert recall.kept[-1].min() > 0.99


def test_it_draws_what_legs_draws():
    model = legs()
    ssm = next(model.backbone.blocks()).mixer.layer
    t = torch.arange(800.0)
    u = torch.stack([torch.sin(t / 60 + phase) for phase in range(4)], dim=-1)[None]
    with torch.no_grad():
        _, state = ssm(u, ssm.initial_state(1))
        found = linear_recall(ssm, u, 799)
    ago = np.array([20.5, 40.5, 60.5])
    by_legs = legs_recall(model, 0, state, ago)[0]  # (h times)
    mine = found.drawn[[-21, -41, -61]].T
    past = u[0, [-21, -41, -61]].T.numpy()
    assert np.abs(by_legs - past).max() < 0.1
    assert np.abs(mine - past).max() < 0.2  # inputs that are independent are expected, not a wave
    np.testing.assert_allclose(found.state, state[0].numpy(), rtol=1e-4, atol=1e-6)


def test_a_layer_with_l_max_keeps_its_last_inputs():
    ssm = adder.S4(4, 8, l_max=5).double()
    u = torch.randn(1, LENGTH, 4, dtype=torch.float64)
    with torch.no_grad():
        found = linear_recall(ssm, u, TOKEN)
        _, state = ssm(u[:, : TOKEN + 1], ssm.initial_state(1))
    assert found.kept.sum(axis=0).tolist() == [4.0] * 4
    assert found.kept[-4:].min() == 1
    np.testing.assert_allclose(found.state, state[0].T.numpy(), rtol=1e-12)
    np.testing.assert_array_equal(found.drawn[-4:], u[0, TOKEN - 3 : TOKEN + 1].numpy())
    assert linear_recall(ssm, u, 1).held.tolist() == [2.0] * 4


def test_dss_has_no_state():
    ssm = S4D(4, 8, method="dss")
    assert linear_recall(ssm, torch.randn(1, 5, 4), 4) is None


def test_many_channels_are_read_in_groups(monkeypatch):
    from adder.explanation import held

    for name in ("mamba", "mamba2", "s4"):
        whole = adder.explain(made(name), ids()).recall
        monkeypatch.setattr(held, "_BLOCK", 1)
        parts = adder.explain(made(name), ids()).recall
        monkeypatch.undo()
        for part in ("state", "inputs", "drawn", "kept"):
            np.testing.assert_allclose(getattr(parts, part), getattr(whole, part), atol=1e-12)


def test_numbers_that_are_not_finite_are_refused():
    model = made("s4d")
    list(model.backbone.blocks())[1].mixer.layer.B.fill_(torch.nan)
    with pytest.raises(adder.UsageError, match="not finite"):
        adder.explain(model, ids())
