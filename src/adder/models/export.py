"""A language model as a graph of its own: torch.export, and ONNX for runtimes that know nothing of PyTorch.

The graph is of one batch size and one length, state in and state out; length 1 is a step.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from adder.errors import AdderError, UsageError
from adder.files import replacing
from adder.layers.state import flatten_state, unflatten_state
from adder.models.language_model import LanguageModel


class _Flat(nn.Module):
    """A model whose state is a row of tensors, in and out, as graphs have it."""

    def __init__(self, model: LanguageModel, batch_size: int):
        super().__init__()
        self.model, self.like = model, model.initial_state(batch_size)

    def forward(self, input_ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        flat = dict(zip(flatten_state(self.like), state, strict=True))
        out = self.model(input_ids, state=unflatten_state(flat, self.like))
        assert out.state is not None
        return out.logits, *flatten_state(out.state).values()


class _Plain(TorchFunctionMode):
    """Runs the portable implementation in the place of each operator of adder: a graph of PyTorch's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self._portable = {
            each._opoverload: each._init_fn
            for name, each in OPDEFS.items()
            if name.startswith("adder::")
        }

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._portable.get(func, func)(*args, **(kwargs or {}))


@torch.no_grad()
def export_program(
    model: LanguageModel,
    batch_size: int = 1,
    length: int = 1,
    operators: Literal["adder", "aten"] = "adder",
) -> ExportedProgram:
    """Return a model as a torch.export graph: (input_ids (b l), *state) to (logits (b l v), *state), without gradients.

    The tensors of the state come in the order of `adder.layers.flatten_state(model.initial_state(batch_size))`.

    Args:
        batch_size, length: of the graph; length 1 is a step.
        operators: "adder" keeps our operators in the graph, which runs where adder is imported, at its speed; "aten"
            puts PyTorch's own in their place.

    Raises:
        UsageError: a size is below 1, or `operators` is neither.

    Example:
        >>> from adder import LanguageModel, LanguageModelConfig
        >>> model = LanguageModel(LanguageModelConfig(vocab_size=10, d_model=8, n_layer=1)).eval()
        >>> step = export_program(model).module()
        >>> state = tuple(flatten_state(model.initial_state(1)).values())
        >>> logits, *state = step(torch.tensor([[3]]), *state)
        >>> logits.shape
        torch.Size([1, 1, 10])
    """
    if min(batch_size, length) < 1:
        raise UsageError(
            f"export: batch_size is {batch_size} and length {length}, expected at least 1"
        )
    if operators not in ("adder", "aten"):
        raise UsageError(f"export: operators is {operators!r}, expected adder or aten")
    flat = _Flat(model, batch_size).eval()
    device = model.backbone.norm_f.weight.device
    ids = torch.zeros(batch_size, length, dtype=torch.int64, device=device)
    inputs = (ids, *flatten_state(flat.like).values())
    if operators == "adder":
        return torch.export.export(flat, inputs, strict=False)
    with _Plain():
        return torch.export.export(flat, inputs, strict=False)


def export_onnx(
    model: LanguageModel, path: str | Path, batch_size: int = 1, length: int = 1
) -> None:
    """Write a model as an ONNX file, which appears whole or not at all; weights of 2 GB and more lie beside it.

    Inputs: "input_ids" (b l) int64, and the state, "state.0.conv" and so on; outputs: "logits" (b l v), and the state
    under the same names with "next." in front.

    Raises:
        UsageError: a size is below 1, or the weights are rounded.
        AdderError: onnx and onnxscript are not installed.
    """
    if model.config.weights != "float":
        raise UsageError(
            f"export: the weights are {model.config.weights}, and ONNX has no such products: give the float model"
        )
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise AdderError("an ONNX file needs two libraries: pip install onnx onnxscript") from None
    program = export_program(model, batch_size, length, "aten")
    names = [f"state.{name}" for name in flatten_state(model.initial_state(batch_size))]
    made = torch.onnx.export(
        program,
        input_names=["input_ids", *names],
        output_names=["logits", *(f"next.{name}" for name in names)],
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    with replacing(Path(path)) as temporary:
        made.save(temporary)
