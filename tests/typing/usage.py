"""What a type checker makes of users' code; `make lint` runs mypy over it. Nothing here is executed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import watnn
from torch import Tensor, nn
from typing_extensions import assert_type
from watnn.transforms import (
    WAT,
    Compose,
    DropConnect,
    FromCallable,
    RandomAffine,
    RandomApply,
    RandomChoice,
    functional,
)

import wat_kernels


class Net(nn.Module):
    """A user's model, with an attribute that only it has."""

    classes: int

    def features(self, x: Tensor) -> Tensor:
        return x


def models_keep_their_type(net: Net, x: Tensor) -> None:
    converted = watnn.convert(net, WAT(), include=["conv*", nn.Linear, lambda name, module: "head" in name])
    assert_type(converted, Net)
    assert_type(converted.classes, int)
    assert_type(watnn.revert(converted), Net)
    assert_type(watnn.export(converted, mode="dom", key=7), Net)
    with watnn.aom(converted) as model:
        assert_type(model, Net)
    with watnn.dom(converted, key=7) as model:
        assert_type(model.features(x), Tensor)
    with watnn.sync_draws(converted) as model:
        assert_type(model, Net)


def layers_are_torch_layers(conv: nn.Conv2d, x: Tensor) -> Iterator[nn.Conv2d]:
    layer = watnn.WATConv2d(3, 8, 3, padding="same", transform=WAT(), gain="channel", shadows=2)
    yield layer
    yield watnn.convert(conv, WAT())
    assert_type(watnn.WATConv2d.from_module(conv, WAT(), gain="layer"), watnn.WATConv2d)
    assert_type(layer.weight, Tensor)
    assert_type(layer.gain, nn.Parameter | None)
    assert_type(layer.strength, float)
    assert_type(layer.dom_key, int | None)
    assert_type(layer.tap_table, wat_kernels.TapTable)
    assert_type(watnn.shadow_weight(layer, key=3), Tensor)
    # a bare layer becomes another one
    assert_type(watnn.revert(layer), nn.Module)
    assert_type(watnn.export(layer), nn.Module)


def what_looks_at_a_model(net: Net, x: Tensor) -> None:
    cost = watnn.flops(net, x, key=1)
    assert_type(cost.expected, float)
    assert_type([row.name for row in cost.layers], list[str])
    mean, std, samples = watnn.ensemble(net, x, shadows=4)
    assert_type(mean, Tensor)
    assert_type(std, Tensor)
    assert_type(samples, Tensor | None)
    assert_type(watnn.export_report(net, x).dom.seconds, float)
    scheduler = watnn.StrengthScheduler(net, "cosine", steps=10)
    watnn.StrengthScheduler(net, lambda epoch: 1 / (1 + epoch))
    assert_type(scheduler.get_last_strength(), float)


def transforms() -> None:
    shift = RandomAffine(degrees=0, translate=(0.3, 0.3))
    choice = RandomChoice([shift, RandomApply(shift, p=0.1), FromCallable(torch.fliplr)], p=[0.5, 0.25, 0.25])
    table = Compose([choice, DropConnect(0.1)]).tap_table(3)
    assert_type(table, wat_kernels.TapTable)
    assert_type(table.maps, Tensor)
    assert_type(functional.affine((3, 3), 10.0, (0, 1), 1.0, 0.0), Tensor)


def ops(x: Tensor, weight: Tensor, table: wat_kernels.TapTable) -> None:
    key = wat_kernels.draw_key()
    assert_type(wat_kernels.draw_rows(table, key, shadows=2), Tensor)
    assert_type(wat_kernels.shadow_conv2d(x, weight, table=table, key=key, stride=(1, 2), padding="same"), Tensor)
    noise = wat_kernels.Noise("dropconnect", 0.1)
    assert_type(wat_kernels.shadow_linear(x, weight, key=7, noise=noise, backend="reference"), Tensor)


def mistakes(net: Net, x: Tensor) -> None:
    """Each line is refused; mypy reports an ignore that nothing needs."""
    watnn.convert(net)  # type: ignore[call-arg]
    watnn.convert(net, DropConnect)  # type: ignore[arg-type]
    watnn.WATConv2d(3, 8, 3, transform="WAT")  # type: ignore[arg-type]
    watnn.WATLinear(3, 8, shadows="2")  # type: ignore[arg-type]
    wat_kernels.shadow_conv2d(x, x, table=WAT(), key=0)  # type: ignore[arg-type]
    watnn.export(net).no_such_attribute()  # type: ignore[operator]
    RandomChoice([DropConnect(0.1)])  # type: ignore[list-item]
