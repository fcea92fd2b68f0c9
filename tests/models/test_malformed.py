"""Malformed folders: each is refused by name, before a model takes memory; random damage is never loaded."""

import dataclasses
import json
import pickle
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from adder import LanguageModel, LanguageModelConfig
from adder.errors import AdderError

pytestmark = pytest.mark.refuses
SIZES = {"pad_vocab_size_multiple": 1, "vocab_size": 5, "d_model": 8, "n_layer": 2, "d_state": 2}
CONFIGS = {
    "mamba": LanguageModelConfig(**SIZES),
    "falcon": LanguageModelConfig(**SIZES, mixer_norm_epsilon=1e-6, tie_embeddings=False),
    "mamba2": LanguageModelConfig(**SIZES, layer="mamba2", headdim=4),
}
NORM = "backbone.norm_f.weight"


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def good(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good")
    LanguageModel(request.param).save_pretrained(folder, "huggingface")
    # As others write it: without what adder puts beside the tensors.
    save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.fixture
def folder(good, tmp_path):
    for each in good.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    LanguageModel.from_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def no_memory(folder, monkeypatch):  # noqa: ARG001  (which loads a model first)
    def refuse(*_, **__):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(torch.nn.Module, "to_empty", refuse)


def refused(folder, message):
    with pytest.raises(AdderError, match=message) as caught:
        LanguageModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def config(folder, **changes):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def header(folder, change, data=None):
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    values = json.loads(raw[8:end])
    text = change(values)
    text = json.dumps(values if text is None else text) if not isinstance(text, str) else text
    path.write_bytes(
        struct.pack("<Q", len(text)) + text.encode() + (raw[end:] if data is None else data)
    )


BAD_CONFIGS = {
    "a size below zero": ({"hidden_size": -8}, "d_model is -8"),
    "a size of zero": ({"num_hidden_layers": 0}, "n_layer is 0"),
    "a huge size": ({"hidden_size": 10**7}, "asks for|more than any"),
    "a size beyond machines": ({"vocab_size": 10**15}, "more than any machine"),
    "many layers": ({"num_hidden_layers": 10**6}, "asks for"),
    "some more layers": ({"num_hidden_layers": 3}, "layers.2.* is missing"),
    "a layer less": ({"num_hidden_layers": 1}, "layers.1.* is no parameter"),
    "a size that is text": ({"hidden_size": "8"}, "d_model is '8'"),
    "a size that is no whole number": ({"state_size": 2.5}, "d_state is 2.5"),
    "a size that is not there": ({"state_size": None}, "state_size is null"),
    "a flag that is a number": ({"use_bias": 1}, "bias is 1, expected true or false"),
    "an eps that is NaN": ({"layer_norm_epsilon": float("nan")}, "norm_epsilon is nan"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "another norm": ({"rms_norm": False}, "rms_norm is False"),
    "an unknown key": ({"sliding_window": 4}, "sliding_window: not known"),
    "rounded weights": ({"quantization_config": {"bits": 4}}, "quantization_config: not known"),
    "another model": ({"model_type": "llama"}, "model_type is 'llama'"),
    "no model": ({"model_type": 7}, "model_type is 7"),
    "two widths": ({"d_model": 999}, "d_model is 999, and hidden_size is 8"),
    "two depths": ({"n_layer": 7}, "n_layer is 7, and num_hidden_layers is 2"),
    "layers of attention": ({"layer_types": ["full_attention"]}, "holds 'full_attention'"),
    "another width of the convolution": (
        {"conv_kernel": 3},
        r"conv1d.weight has shape .*, expected",
    ),
    "biases that are not there": ({"use_bias": True}, r"bias is missing"),
    "a bias that should not be there": ({"use_conv_bias": False}, r"conv1d.bias is no parameter"),
}


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_bad_configs(folder, changes, message):
    config(folder, **changes)
    refused(folder, message)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a model's config"),
        (b"{", "not a model's config"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe{}", "not a model's config"),
        (b"{}", "neither model_type"),
        (b'{"model_type": "mamba", "model_type": "mamba2"}', "stands there twice"),
        (b"[" * 100_000, "not a model's config"),
        (b" " * (2 << 20), "longer than any"),
    ],
)
def test_a_config_that_is_none(folder, content, message):
    (folder / "config.json").write_bytes(content)
    refused(folder, message)


@pytest.mark.usefixtures("no_memory")
def test_heads_that_do_not_fill_the_width(folder):
    if "mamba2" not in (folder / "config.json").read_text():
        pytest.skip("only Mamba-2 has heads")
    config(folder, num_heads=3)
    refused(folder, r"num_heads \* head_dim is 3 \* 4, expected")
    config(folder, num_heads=4, time_step_limit=[0.5, 0.1])
    refused(folder, "dt_limit is")
    config(folder, time_step_limit="all")
    refused(folder, "limits of the step size")


def first(values):
    return next(name for name in values if name != "__metadata__")


def set_in_first(**changes):
    return lambda values: values[first(values)].update(changes)


BAD_HEADERS = {
    "no JSON": (lambda _: "{", "header is no JSON"),
    "a list": (lambda _: [1], "no JSON object"),
    "deep": (lambda _: "[" * 100_000, "header is no JSON"),
    "twice": (lambda v: json.dumps(v)[:-1] + f', "{first(v)}": 1}}', "twice"),
    "metadata": (lambda v: v.update(__metadata__={"a": 1}), "metadata are no strings"),
    "a tensor that is none": (lambda v: v.update({first(v): 3}), "not described as a tensor"),
    "a key too many": (set_in_first(extra=1), "not described as a tensor"),
    "an unknown type": (set_in_first(dtype="F13"), "is of type 'F13'"),
    "a type that is a list": (set_in_first(dtype=["F32"]), "is of type"),
    "a shape below zero": (set_in_first(shape=[-1, -8]), "no whole numbers"),
    "a shape of text": (set_in_first(shape=["a"]), "no whole numbers"),
    "a huge shape": (set_in_first(shape=[1 << 60, 1 << 60]), "bytes of data"),
    "another shape": (set_in_first(shape=[1]), "bytes of data"),
    "offsets of elsewhere": (set_in_first(data_offsets=[1 << 50, 1 << 51]), "bytes of data"),
    "offsets backwards": (set_in_first(data_offsets=[8, 0]), "bytes of data"),
    "a tensor that is gone": (lambda v: v.pop(first(v)) and None, "begins at byte|describes"),
    "another name": (lambda v: v.update(x=v.pop(NORM)), f"{NORM} is missing|x is no parameter"),
}


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(("change", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_bad_headers(folder, change, message):
    header(folder, change)
    refused(folder, message)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x00" * 7, "cut short"),
        (struct.pack("<Q", 1 << 63), "cut short"),
        (struct.pack("<Q", 100 << 20), "cut short"),
        (pickle.dumps({"a": 1}), "cut short"),
        (struct.pack("<Q", 2) + b"\xff\xff", "header is no JSON"),
        (struct.pack("<Q", 9 << 20) + b" " * (9 << 20), "no model's has more"),
    ],
)
def test_files_that_are_no_safetensors(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, message)


@pytest.mark.usefixtures("no_memory")
def test_data_that_is_longer_or_shorter(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\x00"):
        path.write_bytes(content)
        refused(folder, "bytes of data")


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none(folder, number):
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM][3] = number
    save_file(tensors, folder / "model.safetensors")
    refused(folder, f"{NORM} holds a NaN or an infinity")


def test_numbers_of_another_kind(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM] = tensors[NORM].int()
    save_file(tensors, folder / "model.safetensors")
    refused(folder, f"{NORM} is torch.int32, expected torch.float32")


class Harm:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("kind", ["plain", "torch", "harm", "not tensors", "cut"])
def test_pickles(folder, kind, monkeypatch):
    monkeypatch.chdir(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    message = "no file (of tensors alone )?that torch.save wrote"
    if kind == "plain":
        path.write_bytes(pickle.dumps(tensors))
    elif kind == "harm":
        torch.save({**tensors, "x": Harm()}, path)
    elif kind == "not tensors":
        torch.save({**tensors, "x": 3}, path)
        message = "other things than tensors"
    else:
        torch.save({name: each[..., :1] for name, each in tensors.items()}, path)
        message = "holds|has shape"
        if kind == "cut":
            path.write_bytes(path.read_bytes()[:-100])
            message = "torch.save wrote"
    refused(folder, message)
    assert not (folder / "harm").exists()


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.usefixtures("no_memory")
def test_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    one, other = "model-1.safetensors", "model-2.safetensors"
    save_file(tensors, folder / one)
    save_file({NORM: tensors[NORM]}, folder / other)
    every = dict.fromkeys(tensors, one)
    for weight_map, message in (
        ([], "no index of tensors"),
        ({NORM: 3}, "no index of tensors"),
        ({**every, NORM: "../model-1.safetensors"}, "expected one beside it"),
        ({**every, NORM: "/etc/passwd"}, "expected one beside it"),
        ({**every, NORM: "model-3.safetensors"}, "is not there"),
        ({**every, "lost": other, NORM: other}, f"holds {NORM}, which the index has"),
        ({NORM: other}, "missing|asks for"),
        ({**every, "more": one}, "more is not in"),
    ):
        index(folder, weight_map)
        refused(folder, message)
    index(folder, {**every, NORM: other})
    refused(folder, f"holds {NORM}, which the index has in {other}")


def mutated(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, kind = rng.randrange(len(content)), rng.randrange(4)
        if kind == 0:
            content[at] = rng.randrange(256)
        elif kind == 1:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del content[at : at + rng.choice((1, 4, 100))]
            content = content or bytearray(b"\0")
        else:
            content[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
    return bytes(content)


def test_random_damage_is_never_loaded(tmp_path):
    """What adder wrote either is refused, or is what it was."""
    torch.manual_seed(0)
    rng = random.Random(0)
    model = LanguageModel(LanguageModelConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    truth, refusals = model.state_dict(), []
    asdict = dataclasses.asdict(LanguageModel.from_pretrained(tmp_path).config)
    good = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    for _ in range(600):
        name = rng.choice(sorted(good))
        content = mutated(good[name], rng)
        (tmp_path / name).write_bytes(content)
        try:
            found = LanguageModel.from_pretrained(tmp_path)
        except AdderError as error:
            refusals.append(str(error))
        else:
            assert all(torch.equal(truth[name], each) for name, each in found.state_dict().items())
            assert dataclasses.asdict(found.config) == asdict
        (tmp_path / name).write_bytes(good[name])
    assert len(refusals) > 500  # of the others a space changed, or a key that no number depends on
    assert all(each.isprintable() and len(each) < 1100 for each in refusals)
