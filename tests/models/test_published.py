"""Published folders: what transformers writes we run to the same logits, and what we write it runs."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from adder import LanguageModel, LanguageModelConfig, UsageError
from adder.models.published import format_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
SIZES = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
KINDS = {
    "mamba": ("Mamba", {}),
    "mamba with biases": ("Mamba", {"use_bias": True, "use_conv_bias": False, "time_step_rank": 5}),
    "mamba untied": ("Mamba", {"tie_word_embeddings": False, "intermediate_size": 40, "conv_kernel": 3}),
    "falcon": ("FalconMamba", {"tie_word_embeddings": False, "intermediate_size": 48}),
    "mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}),
    "mamba2 tied": ("Mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 1, "tie_word_embeddings": True,
                               "time_step_limit": (0.002, 0.09), "use_bias": True}),
}  # fmt: skip
BAR = {"rtol": 0, "atol": 5e-5}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def theirs(request):
    import transformers

    kind, options = request.param
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            each += 0.05 * torch.randn_like(each)  # biases and D are zeros and ones at first
    return model


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def ids(*shape):
    return torch.randint(1, 37, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_logits_are_those_of_transformers(theirs, folder):
    ours = LanguageModel.from_pretrained(folder)
    torch.testing.assert_close(ours(ids(2, 19)).logits, theirs(ids(2, 19)).logits, **BAR)


def test_greedy_ids_and_those_of_a_beam_search_are_transformers(theirs, folder):
    ours, x = LanguageModel.from_pretrained(folder), ids(2, 7)
    given = {"attention_mask": torch.ones_like(x), "do_sample": False, "pad_token_id": 0}
    greedy = theirs.generate(x, max_new_tokens=12, eos_token_id=None, **given)
    assert torch.equal(ours.generate(x, 12, temperature=0.0), greedy)
    if theirs.config.model_type == "mamba2" and theirs.config.time_step_limit[0] > 0:
        return  # transformers leaves the limits out of its steps
    beams = theirs.generate(x, max_new_tokens=6, num_beams=3, eos_token_id=None, **given)
    assert torch.equal(ours.generate(x, 6, num_beams=3), beams)


@torch.no_grad()
def test_padded_rows_are_what_transformers_makes_of_each_alone(theirs, folder):
    # Of a batch it makes something else where in_proj has a bias: that of the padding enters the convolution.
    ours, x = LanguageModel.from_pretrained(folder), ids(2, 9)
    mask = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]])
    logits = ours(x, mask).logits
    for row in range(2):
        kept = mask[row].bool()
        torch.testing.assert_close(
            logits[row, kept], theirs(x[row : row + 1, kept]).logits[0], **BAR
        )


def test_gradients_are_those_of_transformers(theirs, folder):
    ours, x = LanguageModel.from_pretrained(folder).train(), ids(2, 9)
    theirs.zero_grad()
    theirs(x, labels=x).loss.backward()
    ours(x, labels=x).loss.backward()
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name.replace("embedding.", "embeddings."))
        scale = other.grad.abs().max()
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=float(1e-4 * scale))


@torch.no_grad()
def test_transformers_reads_what_we_write(theirs, folder, tmp_path):
    from transformers import AutoModelForCausalLM

    ours = LanguageModel.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "ours")
    back, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(back) is type(theirs)
    assert not any(loading.values())
    assert torch.equal(back(ids(2, 9)).logits, theirs(ids(2, 9)).logits)
    again = LanguageModel.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config


@torch.no_grad()
def test_shards(theirs, folder, tmp_path):
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    whole, shards = (LanguageModel.from_pretrained(each) for each in (folder, tmp_path / "shards"))
    assert torch.equal(whole(ids(2, 9)).logits, shards(ids(2, 9)).logits)


@torch.no_grad()
def test_what_mamba_ssm_reads_says_the_same(folder, tmp_path):
    ours = LanguageModel.from_pretrained(folder)
    if ours.config.mixer_norm_epsilon or ours.config.intermediate_size:
        with pytest.raises(UsageError, match="mamba_ssm has no (mixer_norm|intermediate_size)"):
            ours.save_pretrained(tmp_path / "ssm", "mamba_ssm")
        assert not (tmp_path / "ssm").exists()
        return
    ours.save_pretrained(tmp_path / "ssm", "mamba_ssm")
    assert format_of(tmp_path / "ssm") == "mamba_ssm"
    held = torch.load(tmp_path / "ssm" / "pytorch_model.bin", weights_only=True)
    assert {"backbone.embedding.weight", "lm_head.weight", "backbone.norm_f.weight"} <= held.keys()
    again = LanguageModel.from_pretrained(tmp_path / "ssm")
    assert torch.equal(again(ids(2, 9)).logits, ours(ids(2, 9)).logits)


@torch.no_grad()
def test_the_embedding_is_padded_in_mamba_ssm_and_not_in_hugging_faces_folders(tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(LanguageModelConfig(vocab_size=11, d_model=16, n_layer=1)).eval()
    model.save_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "ssm", "mamba_ssm")
    assert json.loads((tmp_path / "ssm" / "config.json").read_text())["vocab_size"] == 11
    assert LanguageModel.from_pretrained(tmp_path / "ssm").lm_head.weight.shape == (16, 16)
    assert load_file(tmp_path / "hf" / "model.safetensors")["backbone.embeddings.weight"].shape == (
        11,
        16,
    )
    for name in ("hf", "ssm"):
        again = LanguageModel.from_pretrained(tmp_path / name)
        assert torch.equal(again(ids(1, 5) % 11).logits, model(ids(1, 5) % 11).logits)


def test_a_consolidated_file_of_codestral(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "d_model": 32, "n_layer": 2, "headdim": 64, "ngroups": 1}
    model = LanguageModel(
        LanguageModelConfig(
            layer="mamba2", tie_embeddings=False, pad_vocab_size_multiple=1, **sizes
        )
    ).eval()
    tensors = {f"model.{name}": each.detach() for name, each in model.named_parameters()}
    save_file(tensors, tmp_path / "consolidated.safetensors")
    described = {"dim": 32, "n_layers": 2, "vocab_size": 24, "n_groups": 1, "model_type": "mamba"}
    (tmp_path / "params.json").write_text(json.dumps(described))
    again = LanguageModel.from_pretrained(tmp_path)
    assert torch.equal(again(ids(1, 5) % 24).logits, model(ids(1, 5) % 24).logits)


@torch.no_grad()
def test_weights_in_bfloat16_are_kept_so_or_widened(theirs, tmp_path):
    import copy

    narrow = copy.deepcopy(theirs).bfloat16()
    narrow.save_pretrained(tmp_path)
    ours = LanguageModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {each.dtype for each in ours.parameters()} == {torch.bfloat16}
    wide = LanguageModel.from_pretrained(tmp_path)
    assert {each.dtype for each in wide.parameters()} == {torch.float32}
    truth = wide.double()(ids(2, 9)).logits
    mine, other = ((each(ids(2, 9)).logits.double() - truth).abs().max() for each in (ours, narrow))
    assert mine <= 2 * other + 1e-2  # transformers' own error in this type
    ours.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_without_a_head_or_with_another_one(theirs, folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tied = theirs.config.tie_word_embeddings
    tensors.pop("lm_head.weight", None)
    if tied:
        tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone()
        save_file(tensors, file)
        LanguageModel.from_pretrained(folder)
        tensors["lm_head.weight"] += 1
        message = "lm_head.weight is not the embedding"
    else:
        message = "lm_head.weight is missing"
    save_file(tensors, file)
    with pytest.raises(Exception, match=message):
        LanguageModel.from_pretrained(folder)


def test_a_classifiers_folder_and_a_file_are_told_from_a_model(folder, tmp_path):
    with pytest.raises(UsageError, match="is a file: give the folder"):
        LanguageModel.from_pretrained(folder / "config.json")
    shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"no model here: model.safetensors is missing"):
        LanguageModel.from_pretrained(folder)
