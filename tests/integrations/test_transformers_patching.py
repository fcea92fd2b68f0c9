"""How transformers is patched and put back, what is refused, and what falls back to the original."""

import copy
import io
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", minversion="5.15", reason="needs transformers from 5.15 on")

from families import build, ids, module_of

from adder.errors import UsageError
from adder.integrations.transformers import FAMILIES, accelerate, calls, patch, unpatch

pytestmark = pytest.mark.usefixtures("unpatched")


def names_of(family: str) -> dict[str, object]:
    """Whatever of a modeling file could be replaced: its functions, and the forward of its classes."""
    module = module_of(family)
    own = {name: each for name, each in vars(module).items() if callable(each)}
    forwards = {
        f"{name}.forward": vars(each).get("forward")
        for name, each in own.items()
        if isinstance(each, type)
    }
    return own | forwards


def test_unpatch_restores_the_very_same_objects() -> None:
    before = {family: names_of(family) for family in FAMILIES}
    patch()
    patched = {family: names_of(family) for family in FAMILIES}
    patch()
    for family in FAMILIES:
        changed = {
            name for name in before[family] if patched[family][name] is not before[family][name]
        }
        assert changed >= {"causal_conv1d_fn", "causal_conv1d_update"}
        assert len(changed) >= 4
        assert names_of(family) == patched[family]  # the second call changed nothing
    unpatch()
    unpatch()
    for family in FAMILIES:
        now = names_of(family)
        assert all(now[name] is each for name, each in before[family].items())


def test_patch_is_a_context() -> None:
    before = names_of("mamba")
    with patch():
        assert names_of("mamba") != before
    assert names_of("mamba") == before


def test_accelerate_touches_one_family_and_lasts_while_a_model_wants_it() -> None:
    mamba, mamba2 = names_of("mamba"), names_of("mamba2")
    first, second = build("mamba"), build("mamba")
    assert accelerate(first) is first
    accelerate(second)
    assert names_of("mamba2") == mamba2
    unpatch(first)
    assert names_of("mamba") != mamba
    unpatch(second)
    assert names_of("mamba") == mamba


def test_a_model_that_died_does_not_hold_its_family() -> None:
    before = names_of("mamba")
    accelerate(build("mamba"))
    last = accelerate(build("mamba"))
    unpatch(last)
    assert names_of("mamba") == before


def test_patch_outlives_a_model() -> None:
    before = names_of("mamba")
    patch()
    model = accelerate(build("mamba"))
    unpatch(model)
    assert names_of("mamba") != before


def test_accelerate_refuses_a_model_without_such_layers() -> None:
    with pytest.raises(
        UsageError, match="Linear holds no layer of a model that is served: mamba, "
    ):
        accelerate(nn.Linear(2, 2))


def test_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers puts another module in its own place while it loads: the one there now is asked.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.14.1")
    with pytest.raises(UsageError, match="transformers is 5.14.1, and .* from 5.15 on"):
        patch()
    with pytest.raises(UsageError, match="transformers is 5.14.1"):
        accelerate(build("mamba"))


def test_a_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'adder-ssm\[transformers\]'"):
        patch()


def test_a_missing_name_is_an_error_and_patches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {family: names_of(family) for family in FAMILIES}
    with monkeypatch.context() as changed:
        changed.delattr(module_of("falcon_h1"), "mamba2_chunk_scan")
        with pytest.raises(UsageError, match="modeling_falcon_h1 .* has no mamba2_chunk_scan"):
            patch()
        accelerate(build("mamba"))  # which does not need that one
        unpatch()
    assert {family: names_of(family) for family in FAMILIES} == before


def test_unpatch_refuses_to_drop_what_another_library_put_on_top(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patch()
    with monkeypatch.context() as changed:
        changed.setattr(module_of("mamba"), "mamba_selective_scan", print)
        with pytest.raises(UsageError, match="mamba_selective_scan was replaced again"):
            unpatch()
    unpatch()


def test_another_activation_falls_back() -> None:
    model = build("mamba", hidden_act="gelu")
    theirs = model(ids()).logits
    before = calls()
    ours = accelerate(model)(ids()).logits
    assert (calls().originals - before.originals) == {"mamba.causal_conv1d_fn": 2}
    ran = calls().ours - before.ours
    assert ran == {"mamba.mamba_selective_scan": 2, "mamba.MambaRMSNorm.forward": 3}
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_an_export_holds_the_originals(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = accelerate(build(family)), calls()
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    model(ids())
    assert calls() == before


@pytest.mark.compiles
def test_a_compiled_model_is_one_graph() -> None:
    model = accelerate(build("mamba2"))
    compiled = torch.compile(model.backbone, fullgraph=True, backend="aot_eager")
    eager = model.backbone(ids(), use_cache=False).last_hidden_state
    torch.testing.assert_close(compiled(ids(), use_cache=False).last_hidden_state, eager)


@pytest.mark.parametrize("family", [*FAMILIES[:5], "granitemoehybrid"])
def test_a_prompt_in_pieces_is_one_prompt(family: str) -> None:
    """The original's Mamba-1 forgets its state between them."""
    model, tokens = accelerate(build(family)), ids()
    cache = "cache_params" if "Mamba" in type(model).__name__ else "past_key_values"
    whole = model(tokens, use_cache=True)
    first = model(tokens[:, :5], use_cache=True)
    second = model(tokens[:, 5:], use_cache=True, **{cache: first[cache]})
    parts = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(parts, whole.logits)
    gradient, expected = (
        torch.autograd.grad(each.square().sum(), model.get_input_embeddings().weight)[0]
        for each in (parts, whole.logits)
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_in_pieces_is_refused_where_the_original_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = accelerate(build("mamba")), ids()
    first = model(tokens[:, :5], use_cache=True)
    monkeypatch.setattr("adder.integrations.transformers.operators.DTYPES", ())
    with pytest.raises(UsageError, match="MambaMixer: its scan was not served by adder"):
        model(tokens[:, 5:], use_cache=True, cache_params=first.cache_params)


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_gradients_flow_back_through_decoded_steps(family: str) -> None:
    """The original raises there: its steps overwrite what their own backward pass reads."""
    tokens, model = ids(), accelerate(build(family))
    whole = model(tokens, use_cache=False).logits[:, -3:]
    whole.square().sum().backward()
    expected = {name: each.grad.clone() for name, each in model.named_parameters()}
    model.zero_grad()
    first = model(tokens[:, :-2], use_cache=True)
    second = model(tokens[:, -2:-1], cache_params=first.cache_params, use_cache=True)
    third = model(tokens[:, -1:], cache_params=first.cache_params, use_cache=True)
    parts = torch.cat([first.logits[:, -1:], second.logits, third.logits], dim=1)
    torch.testing.assert_close(parts, whole)
    parts.square().sum().backward()
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_growing_mask_beside_a_cache_is_refused() -> None:
    """The original multiplies the whole mask into the new token, and corrupts the state of the convolution."""
    model = accelerate(build("mamba"))
    tokens = ids()
    with torch.no_grad():
        cache = model(tokens, use_cache=True).cache_params
        with pytest.raises(UsageError, match="got 12 columns: an attention_mask longer than"):
            model(tokens[:, -1:], cache_params=cache, attention_mask=torch.ones(2, 12))


def test_packed_sequences_do_not_leak_in_mamba2() -> None:
    mixer = accelerate(build("mamba2")).backbone.layers[0].mixer
    hidden = torch.randn(1, 11, 16)
    seq_idx = torch.tensor([[0] * 4 + [1] * 7])
    packed = mixer(hidden, seq_idx=seq_idx)
    apart = torch.cat([mixer(hidden[:, :4]), mixer(hidden[:, 4:])], dim=1)
    torch.testing.assert_close(packed, apart)


def test_packed_sequences_are_refused_where_the_scan_would_not_see_them() -> None:
    mixer = accelerate(build("mamba")).backbone.layers[0].mixer
    with pytest.raises(UsageError, match="gives seq_idx to the convolution of this model and not"):
        mixer(torch.randn(1, 11, 16), seq_idx=torch.zeros(1, 11, dtype=torch.int32))


def test_dense_layers_change_their_class_and_nothing_else() -> None:
    model = build("mamba")
    state, types = set(model.state_dict()), [type(each) for each in model.modules()]
    model.backbone.layers[1].mixer.in_proj.forward = lambda x: x  # somebody else's
    accelerate(model)
    projection = type(model.lm_head)
    assert projection is not nn.Linear
    assert isinstance(model.lm_head, nn.Linear)
    assert set(model.state_dict()) == state
    assert type(model.backbone.layers[1].mixer.in_proj) is nn.Linear
    unpatch(model)
    assert [type(each) for each in model.modules()] == types


def test_a_copied_or_saved_module_is_torchs_own() -> None:
    model = accelerate(build("mamba"))
    file = io.BytesIO()
    torch.save(model.lm_head, file)
    file.seek(0)
    for twin in (copy.deepcopy(model.lm_head), torch.load(file, weights_only=False)):
        assert type(twin) is nn.Linear
        assert torch.equal(twin.weight, model.lm_head.weight)


def test_a_dense_layer_takes_no_rows() -> None:
    model = accelerate(build("mamba"))
    assert model.lm_head(torch.empty(0, 16)).shape == (0, 37)
