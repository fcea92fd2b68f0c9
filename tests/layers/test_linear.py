"""Linear: what it is beside torch.nn.Linear, and when its product may be taken without calling it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from adder.layers.linear import Linear, is_bare, is_untouched
from adder.layers.quantized import unbiased


class Scaled(Linear):
    """A Linear whose product is not its weight's."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def own_forward(module: nn.Module) -> None:
    module.forward = lambda x: torch.zeros(len(x), 5)


CHANGES: list[Callable[[nn.Module], object]] = [
    own_forward,
    lambda module: module.register_forward_hook(lambda *_: None),
    lambda module: module.register_forward_pre_hook(lambda *_: None),
    lambda module: module.register_full_backward_hook(lambda *_: None),
    lambda module: module.register_full_backward_pre_hook(lambda *_: None),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_called_as_a_whole(change: Callable[[nn.Module], object]) -> None:
    layer, x = Linear(3, 5), torch.ones(2, 3)
    assert is_bare(layer)
    product, bias = unbiased(layer, x)
    assert bias is layer.bias
    torch.testing.assert_close(product + layer.bias, layer(x))
    change(layer)
    assert not is_bare(layer)
    assert not is_untouched(layer, (Linear,))
    product, bias = unbiased(layer, x)
    assert bias is None
    assert torch.equal(product, layer(x))


def test_the_class_is_exact() -> None:
    assert not is_bare(Scaled(3, 5))
    assert not is_bare(nn.Linear(3, 5))
    assert not is_untouched(Scaled(3, 5), (Linear, nn.Linear))
    assert is_untouched(nn.Linear(3, 5), (Linear, nn.Linear))


@pytest.fixture
def watched() -> Iterator[list[nn.Module]]:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(module)  # type: ignore[arg-type]
    )
    yield seen
    handle.remove()


def test_a_hook_on_all_modules_sees_it(watched: list[nn.Module]) -> None:
    layer = Linear(3, 5)
    unbiased(layer, torch.ones(2, 3))
    assert watched == [layer]


@pytest.mark.compiles
def test_compiles_whole() -> None:
    layer, x = Linear(3, 5), torch.ones(2, 3)

    def product(x: Tensor) -> Tensor:
        y, bias = unbiased(layer, x)
        assert bias is not None
        return y + bias

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_on_the_meta_device() -> None:
    layer = Linear(3, 5, device="meta")
    y = layer(torch.ones(2, 3, device="meta"))
    assert (y.shape, y.device.type) == ((2, 5), "meta")
