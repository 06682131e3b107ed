"""The pictures of the pages, drawn by the library itself while the site is built; mkdocs.yml names this file as a hook."""

from __future__ import annotations

import functools
import io
from typing import Any

import torch
import watnn
from matplotlib.figure import Figure
from mkdocs.structure.files import File, Files
from watnn.transforms import (
    WAT,
    Compose,
    DropConnect,
    FromCallable,
    Identity,
    MultiplicativeNoise,
    RandomAffine,
    RandomApply,
    RandomChoice,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    TapDensity,
    Transform,
)

from wat_kernels import draw_rows

SHIFT = RandomAffine(degrees=0, translate=(0.3, 0.3))
CROP = RandomResizedCrop(scale=(0.8, 1.0))
GALLERY: dict[str, Transform] = {
    "RandomAffine": SHIFT,
    "RandomAffine-bilinear": RandomAffine(degrees=10, scale=(0.9, 1.1), interpolation="bilinear", num_maps=7),
    "RandomRotation": RandomRotation(degrees=60),
    "RandomResizedCrop": CROP,
    "RandomHorizontalFlip": RandomHorizontalFlip(p=0.5),
    "RandomVerticalFlip": RandomVerticalFlip(p=0.25),
    "TapDensity": TapDensity([[0.5, 1, 0.5], [1, 2, 1], [0.5, 1, 0.5]]),
    "FromCallable": FromCallable(torch.fliplr, num_maps=1),
    "Identity": Identity(),
    "MultiplicativeNoise": MultiplicativeNoise(std=0.1),
    "DropConnect": DropConnect(p=0.2),
    "Compose": Compose([RandomHorizontalFlip(p=0.5), RandomVerticalFlip(p=0.5), DropConnect(p=0.2)]),
    "RandomChoice": RandomChoice([RandomHorizontalFlip(p=1), SHIFT], p=[0.4, 0.6]),
    "RandomApply": RandomApply(CROP, p=0.3),
    "WAT": WAT(),
}
_INK, _BLUE, _PALE = "#22223b", "#4c6fb3", "#c9ccd5"


def on_files(files: Files, config: Any) -> Files:
    """mkdocs calls this once a build: the pictures are added to the files of the site."""
    for name, content in pictures().items():
        files.append(File.generated(config, f"pictures/{name}.png", content=content))
    return files


@functools.cache
def pictures() -> dict[str, bytes]:
    """PNG files by name."""
    figures = {"three_forwards": three_forwards(), "computed_taps": computed_taps()}
    figures |= {name: transform.plot(3) for name, transform in GALLERY.items()}
    return {name: _png(figure) for name, figure in figures.items()}


def three_forwards() -> Figure:
    """The filters of one layer: as the optimizer keeps them, and as three forwards compute with them."""
    torch.manual_seed(3)
    layer = watnn.WATConv2d(1, 8, 3, transform=WAT())
    table, columns, rows = layer.tap_table, layer.weight.shape[0], [("PW, the Parameter", layer.weight)]
    for key in (1, 3, 7):  # of three different rows
        row = int(draw_rows(table, key))
        rows.append((f"SW of key {key}: row {row} of {len(table)}", watnn.shadow_weight(layer, key)))
    figure = Figure(figsize=(9.2, 4.3), dpi=120, facecolor="white")
    for line, (title, weight) in enumerate(rows):
        for column, image in enumerate(weight.detach()[:, 0]):
            axes = figure.add_axes((0.26 + 0.092 * column, 0.745 - 0.235 * line, 0.083, 0.178))
            axes.imshow(image, cmap="RdBu", vmin=-0.34, vmax=0.34)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_color(_PALE)
        figure.text(0.02, 0.834 - 0.235 * line, title, color=_INK, fontsize=10.5, va="center")
    figure.text(0.02, 0.955, f"{columns} filters of one WATConv2d, transform=WAT()", color=_INK, fontweight="bold")
    return figure


def computed_taps() -> Figure:
    """How much of a kernel a forward computes on average, for several transforms and kernel sizes."""
    shown = {
        "no transform": Identity(),
        "RandomResizedCrop\n(scale=(0.8, 1.0))": CROP,
        "WAT()": WAT(),
        "RandomAffine\n(0, translate=(0.3, 0.3))": SHIFT,
        "RandomRotation(60)": RandomRotation(degrees=60),
    }
    figure = Figure(figsize=(9.2, 3.4), dpi=120, facecolor="white")
    axes = figure.add_axes((0.06, 0.2, 0.92, 0.66))
    for group, kernel in enumerate((3, 5, 7)):
        shares = [transform.tap_table(kernel).mean_active_taps / kernel**2 for transform in shown.values()]
        places = [index + 0.27 * (group - 1) for index in range(len(shares))]
        bars = axes.bar(
            places, shares, width=0.25, color=("#2f4b86", _BLUE, "#9db2da")[group], label=f"{kernel}x{kernel}"
        )
        axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=2, fontsize=8, color=_INK)
    axes.set_xticks(range(len(shown)), list(shown), fontsize=9, color=_INK)
    axes.set_yticks([])
    axes.set_ylim(0, 1.15)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.2), labelcolor=_INK)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    figure.text(0.06, 0.92, "taps that a forward computes, on average", color=_INK, fontweight="bold", fontsize=10.5)
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
