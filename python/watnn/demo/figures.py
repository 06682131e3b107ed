"""The pictures of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from torch import nn

import watnn
from watnn.demo.digits import Images, corruptions
from watnn.demo.summary import Score, SeedResult
from watnn.demo.variants import VARIANTS

_COLOURS = {"plain": "#8d8b9f", "translate": "#4c6fb3", "choice": "#d0565a", "damp": "#3f9f86"}
_INK = "#22223b"
_MUTED = "#7a7890"
_KERNELS, _SHADOWS = 3, 6  # in the picture of kernels
_LEAST_ERROR = 0.05  # per cent, half an image of the test set: where no error at all is drawn
_EXAMPLE = 3  # the digit shown over the bars


def save_figures(
    folder: Path,
    results: Sequence[SeedResult],
    table: Mapping[str, Mapping[str, Score | None]],
    models: Mapping[str, nn.Module],
    test: Images,
) -> list[Path]:
    """Writes every picture as a PNG and returns the files."""
    figures = {
        "learning_curves": learning_curves(results),
        "robustness": robustness(table, test, len(results)),
        "kernels": kernels(models),
        **{f"transform_{name}": v.transform.plot(3) for name, v in VARIANTS.items() if v.transform is not None},
    }
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=130)
    return files


def learning_curves(results: Sequence[SeedResult]) -> Figure:
    """Training loss and test errors in AOM by epoch: the mean of the seeds, and the range from least to most."""
    figure = _figure(10.5, 4.5)
    left, right = figure.add_axes((0.06, 0.12, 0.42, 0.64)), figure.add_axes((0.555, 0.12, 0.42, 0.64))
    for name, variant in VARIANTS.items():
        losses = np.array([result.loss[name] for result in results])  # (seeds, epochs)
        _line(left, np.arange(1, losses.shape[1] + 1), losses, name, variant.label)
        curves = np.array([result.curve[name] for result in results])  # (seeds, points, 2)
        _line(right, curves[0, :, 0], np.maximum(100 - curves[:, :, 1], _LEAST_ERROR), name, variant.label)
    for axes in (left, right):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = right.get_ylim()
    right.set_yticks([error for error in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= error <= high])
    right.yaxis.set_major_formatter("{x:g}")
    _dress(left, "loss on the training batches, with the weights drawn", "epoch")
    _dress(right, "errors on the test images in AOM, %", "epoch")
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="upper right",
        bbox_to_anchor=(0.985, 0.975),
        ncols=len(VARIANTS),
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
    )
    spread = f"line: mean of {len(results)} seeds, band: least to most" if len(results) > 1 else "one seed"
    _title(figure, "Learning curves", spread)
    return figure


def robustness(table: Mapping[str, Mapping[str, Score | None]], test: Images, seeds: int) -> Figure:
    """Accuracy on clean and on corrupted images, a group of bars for each, under an example of what was tested."""
    example = test.y.tolist().index(_EXAMPLE)
    groups = [
        ("aom", "clean, AOM", test.x[example, 0]),
        ("dom", "clean, DOM", test.x[example, 0]),
        *((f"aom_{name}", f"{name}, AOM", images.x[example, 0]) for name, images in corruptions(test).items()),
    ]
    figure = _figure(10.5, 5.6)
    axes = figure.add_axes((0.06, 0.09, 0.92, 0.53))
    width = 0.2
    for place, (name, variant) in enumerate(VARIANTS.items()):
        for group, (metric, _, _) in enumerate(groups):
            score = table[name][metric]
            x = group + (place - (len(VARIANTS) - 1) / 2) * width
            if score is None:
                axes.text(x, 1.5, "no\ndraw", ha="center", fontsize=8, color=_MUTED)
                continue
            label = variant.label if group == 0 else None
            axes.bar(x, score.mean, 0.92 * width, color=_COLOURS[name], label=label)
            if score.std is not None:
                axes.errorbar(x, score.mean, score.std, color=_INK, linewidth=0.9, capsize=2)
            top = score.mean + (score.std or 0)
            axes.text(x, top + 1.5, f"{score.mean:.1f}", ha="center", fontsize=8, color=_INK)
    for group, (_, label, image) in enumerate(groups):
        centre = 0.06 + 0.92 * (group + 0.5) / len(groups)
        picture = figure.add_axes((centre - 0.045, 0.655, 0.09, 0.17))
        picture.imshow(image.numpy(), cmap="gray_r", vmin=0, vmax=1)
        picture.set(xticks=[], yticks=[])
        picture.set_title(label, fontsize=10, color=_INK, pad=4)
        for spine in picture.spines.values():
            spine.set(color="#c9c7d6", linewidth=0.6)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xticks([])
    _dress(axes, "", "")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=len(VARIANTS), frameon=False, fontsize=9, labelcolor=_INK
    )
    spread = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    _title(figure, "Test accuracy, %", f"{spread}; BatchNorm statistics estimated again for each weight")
    return figure


def kernels(models: Mapping[str, nn.Module]) -> Figure:
    """For each shadow variant the strongest 3x3 kernels of the first layer, each beside the shadows of different draws."""
    shown = {name: models[name] for name, variant in VARIANTS.items() if variant.transform is not None}
    side, gap, block, header, left = 0.72, 0.1, 0.75, 0.75, 0.3  # inches
    rows_height = _KERNELS * (side + gap)
    width = left + (_SHADOWS + 1) * (side + gap) + 0.45
    height = header + len(shown) * (rows_height + block)
    figure = _figure(width, height)
    for place, (name, model) in enumerate(shown.items()):
        layer = model.features[0]
        strongest = layer.weight.detach().flatten(1).norm(dim=1).argsort(descending=True)[:_KERNELS]
        drawn = [layer.weight.detach(), *_different_shadows(layer)]
        top = height - header - place * (rows_height + block)
        figure.text(
            left / width, (top - 0.2) / height, VARIANTS[name].label, fontsize=10.5, fontweight="bold", color=_INK
        )
        for column, weight in enumerate(drawn):
            x = left + column * (side + gap) + (0.25 if column else 0)  # PW stands apart
            heading = "PW" if column == 0 else f"draw {column}"
            figure.text((x + side / 2) / width, (top - 0.42) / height, heading, fontsize=8, color=_MUTED, ha="center")
            for row, kernel in enumerate(strongest.tolist()):
                y = top - 0.5 - (row + 1) * side - row * gap
                axes = figure.add_axes((x / width, y / height, side / width, side / height))
                _kernel(axes, weight[kernel, 0], float(layer.weight[kernel].detach().abs().max()))
    _title(
        figure,
        "Learnt kernels and their shadows",
        "first layer; the plain weight, then six different draws; · = a tap that is zero",
    )
    return figure


def _different_shadows(layer: watnn.WATConv2d) -> list[torch.Tensor]:
    """The first shadow weights of the keys 0, 1, 2, ... that are equal neither to PW nor to one another."""
    found: list[torch.Tensor] = []
    for key in range(1000):
        shadow = watnn.shadow_weight(layer, key).detach()
        if not any(torch.equal(shadow, other) for other in (layer.weight, *found)):
            found.append(shadow)
        if len(found) == _SHADOWS:
            break
    return found


def _kernel(axes: Axes, kernel: torch.Tensor, limit: float) -> None:
    """One (kh, kw) kernel; a tap that is exactly zero, and so not computed, is left blank with a dot."""
    image = kernel.numpy()
    axes.imshow(np.where(image == 0, np.nan, image), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_facecolor("#f4f3f7")
    for y, x in np.argwhere(image == 0):
        axes.text(x, y, "·", ha="center", va="center", fontsize=8, color=_MUTED)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#c9c7d6", linewidth=0.6)


def _line(axes: Axes, x: np.ndarray, values: np.ndarray, name: str, label: str) -> None:
    """values (seeds, points) as a mean line with a band from the least to the most."""
    axes.plot(x, values.mean(0), color=_COLOURS[name], label=label, linewidth=1.8)
    axes.fill_between(x, values.min(0), values.max(0), color=_COLOURS[name], alpha=0.15, linewidth=0)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white")


def _title(figure: Figure, title: str, note: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.17 / height, title, fontsize=12.5, fontweight="bold", color=_INK, va="top")
    figure.text(0.2 / width, 1 - 0.46 / height, note, fontsize=9, color=_MUTED, va="top")


def _dress(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.set_xlabel(xlabel, fontsize=9, color=_INK)
    axes.tick_params(labelsize=9, colors=_INK)
    axes.grid(axis="y", color="#e6e5ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c9c7d6")
