"""Figures of transforms: what each draw does to a kernel, as a picture and as a matrix."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wat_kernels.default_device import on_cpu
from wat_kernels.tap_table import TapTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wat_kernels import Noise

_MAX_MAPS = 15  # with the kernel itself, four rows of panels
_COLUMNS = 4
_PANEL_WIDTH, _PANEL_HEIGHT, _HEADER = 3.35, 1.85, 0.85  # inches
_INK = "#22223b"
_EMPTY = "#f4f3f7"
_MUTED = "#7a7890"
_MATRIX_COLOURS = "RdBu"


@on_cpu
def plot_table(title: str, table: TapTable, noise: Noise | None) -> Figure:
    """The tap maps of a table, most probable first, at most 15. noise: what follows them, for the title

    For each the kernel as it comes out, every tap in the colour and with the number of the input taps it is made of, and
    beside it the (K, K) map. The kernel as it goes in is in the upper left corner.
    """
    order = table.probabilities.argsort(descending=True, stable=True)
    shown = order[:_MAX_MAPS].tolist()
    panels = len(shown) + 1
    columns = min(_COLUMNS, panels)
    rows = math.ceil(panels / columns)
    kh, kw = table.kernel_size or (1, table.maps.shape[1])
    width, height = 0.15 + _PANEL_WIDTH * columns, _HEADER + _PANEL_HEIGHT * rows
    figure = _new_figure(width, height)
    _write_titles(
        figure, title, noise, table, len(shown), float(table.probabilities[order[: len(shown)]].sum()), height
    )
    colours = _tap_colours(kh, kw)
    identity = torch.eye(kh * kw)
    for panel, row in enumerate([None, *shown]):
        corner = (0.15 + _PANEL_WIDTH * (panel % columns), height - _HEADER - _PANEL_HEIGHT * (panel // columns))
        tap_map = identity if row is None else table.maps[row]
        label = "the kernel" if row is None else _percent(float(table.probabilities[row]))
        _draw_panel(figure, corner, tap_map, (kh, kw), colours, label, muted=row is None)
    return figure


@on_cpu
def plot_noise(title: str, noise: Noise) -> Figure:
    """The density, or the two probabilities, of the factor that each weight is multiplied by."""
    figure = _new_figure(4.6, 2.9)
    figure.suptitle(title, x=0.03, ha="left", fontsize=11, color=_INK, fontweight="bold")
    axes = figure.add_axes((0.1, 0.2, 0.86, 0.62))
    if noise.kind == "dropconnect" or noise.amount == 0:
        dropped = noise.amount if noise.kind == "dropconnect" else 0.0
        factors, probabilities = [0.0, 1 / (1 - dropped)], [dropped, 1 - dropped]
        bars = axes.bar(factors, probabilities, width=0.12 / (1 - dropped), color=["#c9ccd5", "#4c6fb3"])
        axes.bar_label(bars, [_percent(p) for p in probabilities], padding=2, fontsize=9, color=_INK)
        axes.set_xticks(factors, [f"{factor:.3g}" for factor in factors])
        axes.set_ylim(0, 1.15)
    else:
        x = torch.linspace(1 - 4 * noise.amount, 1 + 4 * noise.amount, 201)
        density = torch.exp(-(((x - 1) / noise.amount) ** 2) / 2) / (noise.amount * math.sqrt(2 * math.pi))
        axes.fill_between(x.tolist(), density.tolist(), color="#4c6fb3", alpha=0.3, linewidth=0)
        axes.plot(x.tolist(), density.tolist(), color="#4c6fb3")
        axes.axvline(1, color=_MUTED, linewidth=0.8, linestyle=":")
        axes.set_ylim(0, None)
    axes.set_yticks([])
    axes.set_xlabel("each weight is multiplied by", fontsize=9, color=_INK)
    axes.tick_params(labelsize=9, colors=_INK)
    for side in ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _new_figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib, which is not installed: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=120, facecolor="white")


def _write_titles(
    figure: Figure, title: str, noise: Noise | None, table: TapTable, shown: int, probability: float, height: float
) -> None:
    kh, kw = table.kernel_size or (1, table.maps.shape[1])
    maps = f"{len(table)} tap map" + ("s" if len(table) > 1 else "")
    if shown < len(table):
        maps += f", the {shown} most probable shown ({_percent(probability)} of all draws)"
    then = "" if noise is None else f"; then {noise.kind} noise of {noise.amount:g}"
    title = textwrap.shorten(title, width=int(figure.get_figwidth() * 12), placeholder=" …")
    line = 1 / height  # an inch
    left = 0.15 / figure.get_figwidth()
    figure.text(left, 1 - 0.13 * line, title, fontsize=10.5, fontweight="bold", color=_INK, va="top")
    figure.text(
        left,
        1 - 0.41 * line,
        f"on a {kh}x{kw} kernel: {maps}; {table.mean_active_taps:.2f} of {kh * kw} taps computed on average{then}",
        fontsize=9,
        color=_MUTED,
        va="top",
    )


def _draw_panel(
    figure: Figure,
    corner: tuple[float, float],
    tap_map: Tensor,
    size: tuple[int, int],
    colours: Tensor,
    label: str,
    muted: bool,
) -> None:
    """One map: a heading, the shadow kernel at the left, the matrix at the right. corner: its upper left one, inches."""
    width, height = figure.get_size_inches()
    (left, top), side = corner, 1.45

    def text(x: float, y: float, content: str, **style: Any) -> None:
        figure.text((left + x) / width, (top - y) / height, content, **style)

    def square(x: float) -> Axes:
        return figure.add_axes(((left + x) / width, (top - 0.25 - side) / height, side / width, side / height))

    text(0.0, 0.17, label, fontsize=10, color=_MUTED if muted else _INK, fontweight="bold")
    _draw_kernel(square(0.0), tap_map, size, colours)
    if muted:
        note = "left of each pair:\nthe kernel as it comes out\n\nright: its matrix,\nrow = output tap,\ncolumn = input tap"
        text(side + 0.15, 0.25, note, fontsize=7.5, color=_MUTED, va="top", linespacing=1.35)
    else:
        active = int(tap_map.ne(0).any(1).sum())
        text(2 * side + 0.15, 0.17, f"{active} of {len(tap_map)} taps", fontsize=8, color=_MUTED, ha="right")
        _draw_matrix(square(side + 0.15), tap_map)


def _draw_kernel(axes: Axes, tap_map: Tensor, size: tuple[int, int], colours: Tensor) -> None:
    from matplotlib.colors import to_rgb

    kh, kw = size
    weights = tap_map.abs()
    reach = weights.sum(1, keepdim=True)  # (K, 1)
    mixed = (weights / reach.clamp(min=1e-12)) @ colours
    opacity = reach.clamp(max=1)  # a tap that is only partly covered is paler
    image = opacity * mixed + (1 - opacity) * torch.tensor(to_rgb(_EMPTY))
    axes.imshow(image.reshape(kh, kw, 3).numpy())
    font_size = min(9.5, 46 / max(kh, kw))
    for tap, line in enumerate(tap_map):
        column, row = tap % kw, tap // kw
        sources = line.nonzero().flatten().tolist()
        if not sources:
            axes.text(column, row, "·", ha="center", va="center", fontsize=font_size, color=_MUTED)
        elif len(sources) == 1 and max(kh, kw) <= 7:
            light = image[tap] @ torch.tensor([0.3, 0.59, 0.11])
            ink = _INK if light > 0.5 else "white"
            axes.text(column, row, str(sources[0]), ha="center", va="center", fontsize=font_size, color=ink)
    _finish(axes, (kh, kw))


def _draw_matrix(axes: Axes, tap_map: Tensor) -> None:
    taps = len(tap_map)
    limit = max(1.0, float(tap_map.abs().max()))
    axes.imshow(tap_map.numpy(), cmap=_MATRIX_COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    _finish(axes, (taps, taps))


def _finish(axes: Axes, cells: tuple[int, int]) -> None:
    """White lines between cells, a thin frame, no ticks, flush to the upper left."""
    rows, columns = cells
    axes.set_xticks([column - 0.5 for column in range(1, columns)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, rows)], minor=True)
    width = min(1.4, 14 / max(rows, columns))
    colour = "white" if max(cells) <= 11 else "#e9e8ee"
    axes.grid(which="minor", color=colour, linewidth=width if max(cells) <= 11 else 0.25)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(which="both", length=0)
    axes.set_anchor("NW")
    for spine in axes.spines.values():
        spine.set(color="#c9c7d6", linewidth=0.6)


def _tap_colours(kh: int, kw: int) -> Tensor:
    """(K, 3) colours of the input taps: each corner of the kernel has its own, so a move or a turn can be seen."""
    corners = torch.tensor([[[0.93, 0.73, 0.32], [0.85, 0.36, 0.38]], [[0.33, 0.70, 0.60], [0.29, 0.36, 0.68]]])
    down = torch.linspace(0, 1, kh).reshape(kh, 1, 1) if kh > 1 else torch.full((1, 1, 1), 0.5)
    along = torch.linspace(0, 1, kw).reshape(1, kw, 1) if kw > 1 else torch.full((1, 1, 1), 0.5)
    upper = (1 - along) * corners[0, 0] + along * corners[0, 1]
    lower = (1 - along) * corners[1, 0] + along * corners[1, 1]
    return ((1 - down) * upper + down * lower).reshape(-1, 3)


def _percent(probability: float) -> str:
    if probability >= 0.9995:
        return "100 %"
    return f"{probability:.1%}".replace("%", " %") if probability >= 0.001 else f"{probability * 100:.2g} %"
