"""How much work the layers of a model do: with PW, with SW on average, and as an exported DOM model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wat_kernels.matrix_grid import mean_inside
from watnn.export import dom_box, row_box
from watnn.layers import ShadowConv, ShadowLayer, WATLinear, shadow_layers
from watnn.modes import ModeSwitch, layer_keys


@dataclass(frozen=True)
class LayerFlops:
    """Floating-point operations of one layer for the given inputs; a multiply-add counts as 2.

    dense:    with PW, what the plain layer does
    expected: with SW: active taps only, averaged over the draws at the present strength; of a moved Linear weight the
              lines that stay inside (an elementwise noise skips nothing)
    exported: as an exported DOM layer, cropped to the box of active taps: of the given key, else on average
    """

    name: str
    layer: str
    dense: int
    expected: float
    exported: float


@dataclass(frozen=True)
class ModelFlops:
    """`layers` with their totals; prints as a table.

    What runs in no layer, attention's products for example, is the last entry, "(elsewhere)".
    """

    layers: tuple[LayerFlops, ...]

    @property
    def dense(self) -> int:
        return sum(layer.dense for layer in self.layers)

    @property
    def expected(self) -> float:
        return sum(layer.expected for layer in self.layers)

    @property
    def exported(self) -> float:
        return sum(layer.exported for layer in self.layers)

    def __str__(self) -> str:
        total = LayerFlops("total", "", self.dense, self.expected, self.exported)
        lines = [("layer", "type", "dense", "SW expected", "DOM exported")]
        for row in (*self.layers, total):
            share = [
                f"{value:,.0f} ({value / row.dense:.0%})" if row.dense else "0"
                for value in (row.expected, row.exported)
            ]
            lines.append((row.name, row.layer, f"{row.dense:,}", share[0], share[1]))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if c < 2 else cell.rjust(w) for c, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def flops(model: nn.Module, *inputs: Tensor, key: int | None = None) -> ModelFlops:
    """Floating-point operations per layer for one forward of `model(*inputs)`, counted by torch's own counter.

    inputs: what the model takes; it runs once in eval() and AOM without gradients, and is left as it was
    key:    count the exported DOM model of this key; by default the average over the draws
    """
    training = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)  # fused attention is an op that the counter may not know
        with torch.no_grad(), ModeSwitch(model, "aom", None), sdpa_kernel(SDPBackend.MATH), counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for module, mode in training.items():
            module.training = mode
    layers = shadow_layers(model)
    keys = dict(zip((name for name, _ in layers), layer_keys(key, len(layers)), strict=True)) if key is not None else {}
    root = type(model).__name__
    rows = []
    for name, module in model.named_modules():
        dense = sum(counter.flop_counts.get(f"{root}.{name}" if name else root, {}).values())
        if dense and (isinstance(module, ShadowLayer) or not any(module.children())):
            expected, exported = _shares(module, keys.get(name))
            rows.append(LayerFlops(name, type(module).__name__, dense, dense * expected, dense * exported))
    elsewhere = counter.get_total_flops() - sum(row.dense for row in rows)
    if elsewhere > 0:
        rows.append(LayerFlops("(elsewhere)", "", elsewhere, float(elsewhere), float(elsewhere)))
    return ModelFlops(tuple(rows))


def expected_share(layer: ShadowLayer) -> float:
    """Average work with SW as a share of that with PW, at the present strength."""
    return _shares(layer, None)[0]


def _shares(module: nn.Module, key: int | None) -> tuple[float, float]:
    """(expected, exported) work of a layer as a share of its dense work."""
    if not isinstance(module, ShadowLayer) or module.transform is None:
        return 1.0, 1.0
    if isinstance(module, WATLinear):
        grid = module.matrix_grid
        if grid is None:
            return 1.0, 1.0
        return mean_inside(grid.rows, grid.probabilities, module.weight.shape) / module.weight.numel(), 1.0
    assert isinstance(module, ShadowConv)
    table = module.tap_table
    count = table.maps.shape[1]
    if key is not None:
        box = dom_box(module, key)
        exported = box.taps if box else 1
    else:
        areas = [(box.taps if box else 1) for box in (row_box(module, r) for r in range(len(table)))]
        exported = sum(a * p for a, p in zip(areas, table.probabilities.tolist(), strict=True))
    return table.mean_active_taps / count, exported / count
