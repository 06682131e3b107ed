"""Tables do not depend on the default device: large models are built under `torch.device("meta")`."""

import pytest
import torch
import watnn
from watnn.transforms import (
    WAT,
    Compose,
    DropConnect,
    FromCallable,
    RandomAffine,
    RandomApply,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    TapDensity,
    base,
    functional,
)  # fmt: skip

TRANSFORMS = [
    WAT(),
    RandomAffine(10, translate=(0.3, 0.3), interpolation="bilinear", num_maps=8),
    RandomRotation(20),
    RandomResizedCrop(scale=(0.8, 1.0)),
    RandomApply([RandomHorizontalFlip()], 0.3),
    Compose([RandomHorizontalFlip(), RandomAffine(0, translate=(0.4, 0.0))]),
    TapDensity([[0.5, 1.0, 0.5]] * 3),
    FromCallable(lambda kernels: kernels.flip(-1), num_maps=1),
]


@pytest.fixture(autouse=True)
def _nothing_remembered():
    for cached in (base._tap_table, base._matrix_grid):
        cached.cache_clear()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_tap_tables(transform):
    with torch.device("meta"):
        table = transform.tap_table(3)
        layer = watnn.WATConv2d(2, 4, 3, transform=transform)
    base._tap_table.cache_clear()
    right = transform.tap_table(3)
    assert torch.equal(table.maps, right.maps) and torch.equal(table.probabilities, right.probabilities)
    assert torch.equal(table.on(torch.device("cpu")).taps, right.on(torch.device("cpu")).taps)
    assert layer.weight.is_meta and table.is_identity == right.is_identity


def test_functional_maps_and_keys_of_layers():
    with torch.device("meta"):
        found = functional.affine(3, 10.0, (1, 0), 1.0, (0.0, 0.0)), watnn.modes.layer_keys(5, 3)
    torch.testing.assert_close(found[0], functional.affine(3, 10.0, (1, 0), 1.0, (0.0, 0.0)))
    assert found[1] == watnn.modes.layer_keys(5, 3)


def test_a_linear_layer_built_on_meta_computes_once_it_has_memory():
    transform = Compose([RandomAffine(0, translate=(0.2, 0.2)), DropConnect(0.2)])
    with torch.device("meta"):
        layer = watnn.WATLinear(7, 5, transform=transform)
    layer = layer.to_empty(device="cpu")
    other = watnn.WATLinear(7, 5, transform=transform)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(3, 7)
    for model in (layer, other):
        watnn.dom(model, key=4)
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight))
