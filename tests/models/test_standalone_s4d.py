"""A state dict of state-spaces/s4's standalone S4D gives the logits of its equations, written out here."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from adder import DamagedFile, SequenceClassifier, UsageError
from adder.models.standalone_s4d import convert

LAYERS, D, MODES, INPUTS, CLASSES = 3, 6, 4, 2, 5


def state_dict() -> dict[str, torch.Tensor]:
    """The names and shapes of S4Model, with random numbers."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g)

    tensors = {
        "encoder.weight": normal(D, INPUTS),
        "encoder.bias": normal(D),
        "decoder.weight": normal(CLASSES, D),
        "decoder.bias": normal(CLASSES),
    }
    for i in range(LAYERS):
        tensors |= {
            f"s4_layers.{i}.D": normal(D),
            f"s4_layers.{i}.kernel.C": normal(D, MODES, 2),
            f"s4_layers.{i}.kernel.log_dt": normal(D) - 3,
            f"s4_layers.{i}.kernel.log_A_real": normal(D, MODES),
            f"s4_layers.{i}.kernel.A_imag": 3 * normal(D, MODES),
            f"s4_layers.{i}.output_linear.0.weight": normal(2 * D, D, 1),
            f"s4_layers.{i}.output_linear.0.bias": normal(2 * D),
            f"norms.{i}.weight": 1 + normal(D) / 4,
            f"norms.{i}.bias": normal(D) / 4,
        }
    return tensors


def forward(tensors: dict[str, torch.Tensor], x: torch.Tensor, prenorm: bool) -> torch.Tensor:
    """The equations of the paper and of the standalone code, one after the other, in float64."""
    p = {name: value.double() for name, value in tensors.items()}
    x = x @ p["encoder.weight"].T + p["encoder.bias"]
    length = x.shape[1]
    for i in range(LAYERS):
        own = {name: p[f"s4_layers.{i}.{name}"] for name in ("D", "kernel.C", "kernel.log_dt")}
        A = torch.complex(
            -p[f"s4_layers.{i}.kernel.log_A_real"].exp(), p[f"s4_layers.{i}.kernel.A_imag"]
        )
        dt_A = own["kernel.log_dt"].exp()[:, None] * A
        C = torch.view_as_complex(own["kernel.C"]) * (dt_A.exp() - 1) / A
        powers = (dt_A[..., None] * torch.arange(length, dtype=torch.float64)).exp()
        K = 2 * (C[..., None] * powers).sum(1).real  # (h l)

        def norm(z, i=i):
            return F.layer_norm(z, (D,), p[f"norms.{i}.weight"], p[f"norms.{i}.bias"], 1e-5)

        u = norm(x) if prenorm else x
        y = torch.zeros_like(u)
        for t in range(length):
            for s in range(t + 1):
                y[:, t] += K[:, t - s] * u[:, s]
        y = F.gelu(y + own["D"] * u)
        mixed = (
            y @ p[f"s4_layers.{i}.output_linear.0.weight"][..., 0].T
            + p[f"s4_layers.{i}.output_linear.0.bias"]
        )
        y = mixed[..., :D] * torch.sigmoid(mixed[..., D:])
        x = x + y if prenorm else norm(x + y)
    return x.mean(1) @ p["decoder.weight"].T + p["decoder.bias"]


@pytest.fixture
def x():
    return torch.randn(2, 19, INPUTS, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("prenorm", [False, True])
@torch.no_grad()
def test_converted_model_gives_the_logits_of_the_equations(tmp_path, x, prenorm):
    torch.save(state_dict(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", prenorm=prenorm).save_pretrained(tmp_path / "model")
    model = SequenceClassifier.from_pretrained(tmp_path / "model").double()
    expected = forward(state_dict(), x, prenorm)
    assert (model(x).logits - expected).abs().max() < 1e-10 * expected.abs().max()
    state = model.initial_state(2)
    for piece in x.split(4, dim=1):
        out = model(piece, state=state)
        state = out.state
    assert (out.logits - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize("form", ["ckpt.pth", "bare.pt", "parallel.ckpt", "model.safetensors"])
@torch.no_grad()
def test_every_way_it_is_saved_in(tmp_path, x, form):
    path, tensors = tmp_path / form, state_dict()
    if form == "ckpt.pth":
        torch.save({"model": tensors, "acc": 91.5, "epoch": 7}, path)
    elif form == "parallel.ckpt":
        torch.save({"model": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 7}, path)
    elif form == "bare.pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    model = convert(path)
    assert (model.config.d_state, model.config.n_layer, model.config.classes) == (8, 3, 5)
    assert not model.training
    expected = forward(tensors, x, False)
    assert (model.double()(x).logits - expected).abs().max() < 1e-10 * expected.abs().max()


def changed(**changes) -> dict[str, torch.Tensor]:
    tensors = state_dict()
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (changed(encoder__weight=None), "encoder.weight is missing"),
        (changed(norms__2__bias=None), "norms.2.bias is missing"),
        (changed(s4_layers__1__D=None), "s4_layers.1.D is missing"),
        (changed(extra=torch.zeros(1)), "extra is not known"),
        (
            changed(s4_layers__1__D=torch.zeros(7)),
            r"s4_layers.1.D has shape \(7,\), expected \(6,\)",
        ),
        (
            changed(encoder__weight=torch.zeros(6)),
            r"encoder.weight has shape \(6,\), expected 2 axes",
        ),
        (changed(s4_layers__99999999999__D=torch.zeros(6)), "not all before it"),
        (changed(encoder__bias=torch.full((6,), torch.nan)), "encoder.bias holds something else"),
        (changed(encoder__bias=3), "encoder.bias is a int"),
        ([1, 2], "holds a list, expected the state dict of S4Model"),
        ({}, "holds a dict, expected the state dict"),
    ],
)
def test_what_does_not_belong_is_named(tmp_path, held, message):
    torch.save(held, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=message):
        convert(tmp_path / "model.pt")


class Harmful:
    def __reduce__(self):
        return (Path("harm").touch, ())


def test_nothing_but_tensors_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state_dict(), "epoch": Harmful()}, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="adder runs no pickle: save model.state_dict"):
        convert(tmp_path / "model.pt")
    assert not (tmp_path / "harm").exists()


def test_files_of_another_kind(tmp_path):
    with pytest.raises(UsageError, match="cannot read .*No such file"):
        convert(tmp_path / "nowhere.pt")
    with pytest.raises(UsageError, match="is no file"):
        convert(tmp_path)
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="is of no known kind"):
        convert(tmp_path / "model.zip")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_bytes(b"no checkpoint at all")
        with pytest.raises(DamagedFile, match=name):
            convert(tmp_path / name)
    with (tmp_path / "large.pt").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(UsageError, match=r"has 2.0 GiB, too large"):
        convert(tmp_path / "large.pt")


def test_cut_and_inflated_archives_are_damaged(tmp_path):
    torch.save(state_dict(), tmp_path / "model.pt")
    data = (tmp_path / "model.pt").read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(DamagedFile, match=r"cut\.pt"):
            convert(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(10**6))
    with pytest.raises(DamagedFile, match="unpacks to 1000000 bytes"):
        convert(tmp_path / "bomb.pt")
