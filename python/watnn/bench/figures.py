"""Pictures of rows: ratios to the baselines, each shape, the roofline, scaling, memory."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter, NullLocator

from watnn.bench.rows import BASELINES, Row
from watnn.bench.store import latest

# Okabe and Ito's palette, told apart by colour-blind readers; ours is blue, the plain layer grey
COLOURS = {"wat": "#0072B2", "plain": "#7f7f8c", "official": "#E69F00", "compiled": "#CC5500", "library": "#009E73"}
MARKERS = {"wat": "o", "plain": "|", "official": "s", "compiled": "D", "library": "^"}
LABELS = {
    "wat": "this layer",
    "plain": "plain layer",
    "official": "official pipeline, eager noise",
    "compiled": "torch.compile of that",
    "library": "backend library",
}
_INK, _MUTED, _GRID, _EDGE = "#22223b", "#6d6b80", "#e6e5ec", "#c9c7d6"
_BACKING = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # under text that may lie on a line
_TIMED = ("conv", "depthwise", "linear", "network")


def save_figures(folder: Path, rows: Sequence[Row], formats: Sequence[str] = ("png",), **metadata: str) -> list[Path]:
    """Draws what `rows` have data for and returns the files, `<picture>[_<dtype>].<format>`.

    Of rows that measured the same the last one counts; where there are several dtypes, each has its pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    chosen = [row for row in latest(rows) if not row.note or row.ms is not None or row.saved_bytes is not None]
    dtypes = list(dict.fromkeys(row.dtype for row in chosen))
    for dtype in dtypes:
        suffix = f"_{dtype}" if len(dtypes) > 1 else ""
        for name, figure in _figures([row for row in chosen if row.dtype == dtype]):
            for form in formats:
                files.append(folder / f"{name}{suffix}.{form}")
                # without the date and with fixed ids a picture changes only when its data do
                extra = {"Date": None} if form == "svg" else {}
                figure.savefig(files[-1], dpi=140, metadata={**extra, **metadata})
    return files


def _figures(rows: Sequence[Row]) -> Iterable[tuple[str, Figure]]:
    full = [row for row in rows if row.mode == "full" and row.suite in _TIMED and row.ms is not None]
    if any(row.vs_plain is not None for row in full):
        yield "ratios", ratios(full)
        yield "shapes", shapes(full)
    if any(row.of_limit is not None for row in full):
        yield "roofline", roofline(full)
    curves = [row for row in rows if row.curve and row.ms is not None]
    if curves:
        yield "scaling", scaling(curves)
    weighed = [row for row in rows if row.suite == "memory" and row.saved_above_plain is not None]
    if weighed:
        yield "memory", memory(weighed)


def ratios(rows: Sequence[Row]) -> Figure:
    """Our time divided by that of each baseline: a bar for the geometric mean over the shapes, a whisker from best to worst."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in sorted(rows, key=lambda row: _TIMED.index(row.suite)):
        if row.role == "wat":
            group = groups.setdefault((row.suite, row.variant), {})
            for baseline in BASELINES:
                value = getattr(row, f"vs_{baseline}")
                if value is not None:
                    group.setdefault(baseline, []).append(value)
    lines = sum(len(group) for group in groups.values()) + 0.9 * len(groups)
    figure, axes = _page(9.0, 1.75 + 0.24 * lines, left=2.1, top=1.15, bottom=0.6)
    y, ticks, largest = 0.0, [], 1.0
    axes.axvline(1.0, color=_INK, linewidth=1.1, linestyle=(0, (4, 2)))
    named: set[str] = set()
    for (suite, variant), group in groups.items():
        middle = y + (len(group) - 1) / 2
        count = len(next(iter(group.values())))
        ticks.append((middle, f"{suite}, {variant.replace('_', ' ')}\n{_counted(count, 'shape')}"))
        for baseline, values in group.items():
            mean = statistics.geometric_mean(values)
            label = "" if baseline in named else LABELS[baseline]
            named.add(baseline)
            axes.barh(y, mean, 0.82, color=COLOURS[baseline], label=label, gid=baseline)
            axes.plot([min(values), max(values)], [y, y], color=_INK, linewidth=0.9)
            axes.text(max(mean, *values) + 0.015, y, f"{mean:.2f}", va="center", fontsize=8, color=_INK, bbox=_BACKING)
            largest = max(largest, mean, *values)
            y += 1
        y += 0.9
    axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.set_ylim(y - 0.9, -0.9)
    axes.set_xlim(0, 1.12 * largest)
    _legend(figure, axes)
    _dress(axes, "x", "time of this layer / time of the baseline; left of the line is faster")
    _title(
        figure,
        "Forward and backward against the baselines",
        _machine(rows, "bar: geometric mean, line: best to worst shape"),
    )
    return figure


def shapes(rows: Sequence[Row]) -> Figure:
    """Each shape: time divided by that of the plain layer, on a logarithmic axis, for all that was measured."""
    plain = {(row.suite, row.case): row.ms for row in rows if row.role == "plain"}
    order = sorted((row for row in rows if row.variant), key=lambda row: _TIMED.index(row.suite))
    variants = list(dict.fromkeys((row.suite, row.variant) for row in order))
    counts = {v: len({row.case for row in order if (row.suite, row.variant) == v}) for v in variants}
    heights = [0.22 * counts[v] + 0.5 for v in variants]
    figure = _figure(9.0, 1.15 + sum(heights) + 0.55)
    width, height = figure.get_size_inches()
    top, low, high = height - 1.15, 0.8, 1.25
    every = []
    for (suite, variant), tall in zip(variants, heights, strict=True):
        axes = figure.add_axes(
            (2.3 / width, (top - tall + 0.15) / height, (width - 2.55) / width, (tall - 0.38) / height)
        )
        top -= tall
        chosen = [row for row in order if (row.suite, row.variant) == (suite, variant)]
        cases = list(dict.fromkeys(row.case for row in chosen))
        for row in chosen:
            value = row.ms / plain[row.suite, row.case]
            low, high = min(low, value), max(high, value)
            label = LABELS[row.role] if row.role not in {line.get_gid() for line in axes.lines} else None
            axes.plot(
                value, cases.index(row.case), MARKERS[row.role], color=COLOURS[row.role], markersize=5.5,
                label=label, gid=row.role, zorder=3 if row.role == "wat" else 2,
            )  # fmt: skip
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.5, -0.5)
        axes.axvline(1.0, color=_INK, linewidth=1.1, linestyle=(0, (4, 2)))
        _dress(axes, "both", "")
        axes.set_title(f"{suite}, {variant.replace('_', ' ')}", loc="left", fontsize=9, color=_INK, pad=3)
        every.append(axes)
    for axes in every:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * low, 1.25 * high)
        ticks = [t for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if 0.8 * low <= t <= 1.25 * high]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks] if axes is every[-1] else [])
        axes.xaxis.set_minor_locator(NullLocator())
    every[-1].set_xlabel("time / time of the plain layer (dashed line)", fontsize=9, color=_INK)
    best = max(every, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    _legend(figure, best)
    _title(figure, "Every shape, forward and backward", _machine(rows, "medians"))
    return figure


def roofline(rows: Sequence[Row]) -> Figure:
    """Rate against arithmetic intensity, under what the machine can do at most."""
    points = [row for row in rows if row.of_limit is not None and row.role in ("wat", "plain", "official")]
    figure, axes = _page(9.0, 5.6, left=0.85, top=1.15, bottom=0.65)
    peak, bandwidth = max(row.limit_gflops for row in points), max(row.limit_gbytes for row in points)
    intensities = [row.gflops / row.gbytes for row in points]
    low, high = 0.6 * min(intensities), 2.0 * max(intensities)
    knee = peak / bandwidth
    roof = sorted({low, min(max(knee, low), high), high})
    axes.plot(roof, [min(peak, bandwidth * x) for x in roof], color=_INK, linewidth=1.4, gid="roof")
    for role in ("plain", "official", "wat"):
        chosen = [row for row in points if row.role == role]
        axes.plot(
            [row.gflops / row.gbytes for row in chosen],
            [row.gflops / (row.ms / 1e3) for row in chosen],
            "x" if role == "plain" else MARKERS[role],
            color=COLOURS[role], label=LABELS[role], markersize=5.5, alpha=0.85, linestyle="none", gid=role,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(top=2.2 * max(peak, *(row.gflops / (row.ms / 1e3) for row in points)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(LogFormatter(labelOnlyBase=True))
        axis.set_minor_formatter(NullFormatter())
    _legend(figure, axes)
    _dress(axes, "both", "needed operations per byte that has to move, FLOP/B")
    axes.set_ylabel("needed operations per second, GFLOP/s", fontsize=9, color=_INK)
    _title(
        figure,
        "Against the limits of the machine, forward and backward",
        _machine(points, f"roof: copy {bandwidth:,.0f} GB/s, products {peak:,.0f} GFLOP/s"),
    )
    return figure


_AXES = {  # of a curve: label, base of a logarithmic axis or None, whether the time is logarithmic too
    "taps": ("active taps of a 3×3 kernel", None, False),
    "channels": ("channels", 2, True),
    "batch": ("batch", 2, True),
    "threads": ("CPU threads", 2, False),
    "shadows": ("shadows S of one batch", 2, False),
}


def scaling(rows: Sequence[Row]) -> Figure:
    """One small picture for each quantity that was varied."""
    curves = [curve for curve in _AXES if any(row.curve == curve for row in rows)]
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure = _figure(3.4 * columns + 0.3, 0.95 + 2.75 * lines)
    width, height = figure.get_size_inches()
    for place, curve in enumerate(curves):
        column, line = place % columns, place // columns
        left, bottom = 0.65 + 3.4 * column, height - 0.95 - 2.75 * (line + 1) + 0.65
        axes = figure.add_axes((left / width, bottom / height, 2.6 / width, 1.75 / height))
        _curve(axes, curve, [row for row in rows if row.curve == curve])
        if place == 0:
            _legend(figure, axes)
    _title(figure, "How the cost grows, forward and backward", _machine(rows, "band: quartiles"))
    return figure


def _curve(axes: Axes, curve: str, rows: Sequence[Row]) -> None:
    label, base, logarithmic = _AXES[curve]
    for role in ("plain", "library", "wat"):
        points = sorted((row.at, row.ms, row.ms_lower, row.ms_upper) for row in rows if row.role == role)
        if not points:
            continue
        at, middle, lower, upper = zip(*points, strict=True)
        style = "-" if role == "wat" else "--" if role == "plain" else ":"
        marker = "." if role == "plain" else MARKERS[role]
        axes.plot(at, middle, linestyle=style, marker=marker, markersize=3.5, linewidth=1.5,
                  color=COLOURS[role], label=LABELS[role], gid=role)  # fmt: skip
        axes.fill_between(at, lower, upper, color=COLOURS[role], alpha=0.18, linewidth=0)
    ticks = sorted({row.at for row in rows})
    if base:
        axes.set_xscale("log", base=base)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
        if not base:
            axes.set_xlim(left=0)
    _dress(axes, "both", label)
    axes.set_title("milliseconds", loc="left", fontsize=8.5, color=_MUTED, pad=4)


def memory(rows: Sequence[Row]) -> Figure:
    """Bytes above the plain layer's: kept for backward, and at the peak."""
    order = [row for row in rows if row.role != "plain"]
    cases = list(dict.fromkeys(row.case for row in order))
    lines = len(order) + 1.3 * len(cases)
    figure = _figure(10.5, 1.5 + 0.22 * lines)
    width, height = figure.get_size_inches()
    names = ("saved_above_plain", "peak_above_plain")
    titles = ("kept for backward", "peak of forward and backward")
    for place, (name, title) in enumerate(zip(names, titles, strict=True)):
        left = 3.3 + 3.65 * place
        axes = figure.add_axes((left / width, 0.5 / height, 3.05 / width, (height - 1.65) / height))
        y, ticks = 0.0, []
        for case in cases:
            ticks.append((y, case, True))
            y += 1.0
            for row in (row for row in order if row.case == case):
                value = getattr(row, name)
                ticks.append((y, f"{LABELS[row.role].split(',')[0]}, {row.variant.replace('_', ' ')}", False))
                if value is not None:
                    axes.barh(y, value / 1e6, 0.8, color=COLOURS[row.role], gid=row.role)
                    text = f"{value:+,} B" if abs(value) < 1000 else f"{value / 1e6:+,.1f} MB"
                    axes.annotate(text, (max(value, 0) / 1e6, y), (4, 0), textcoords="offset points", va="center",
                                  fontsize=7.5, color=_INK)  # fmt: skip
                y += 1.0
            y += 0.3
        axes.set_ylim(y - 0.6, -0.8)
        axes.set_yticks([at for at, _, _ in ticks], [text for _, text, _ in ticks] if place == 0 else [])
        for label, (_, _, bold) in zip(axes.get_yticklabels(), ticks, strict=True):
            label.set_fontweight("bold" if bold else "normal")
        axes.axvline(0, color=_INK, linewidth=1.0)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high + 0.32 * (high - low))
        _dress(axes, "x", "MB above the plain layer")
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, loc="left", fontsize=9.5, color=_INK)
    _title(figure, "Memory above that of the plain layer", _machine(rows, ""))
    return figure


def _machine(rows: Sequence[Row], note: str) -> str:
    row = rows[-1]
    threads = max((other.threads for other in rows), default=row.threads)
    where = row.machine if row.device != "cpu" else f"{row.machine}, {_counted(threads, 'thread')}"
    return "; ".join(filter(None, (f"{where}, {row.dtype}, torch {row.torch}", note)))


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), facecolor="white")


def _page(width: float, height: float, left: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; all in inches."""
    figure = _figure(width, height)
    return figure, figure.add_axes(
        (left / width, bottom / height, (width - left - 0.25) / width, (height - top - bottom) / height)
    )


def _title(figure: Figure, title: str, note: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(0.2 / width, 1 - 0.17 / height, title, fontsize=12.5, fontweight="bold", color=_INK, va="top")
    figure.text(0.2 / width, 1 - 0.45 / height, note, fontsize=9, color=_MUTED, va="top")


def _legend(figure: Figure, axes: Axes) -> None:
    width, height = figure.get_size_inches()
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="upper left",
        bbox_to_anchor=(0.12 / width, 1 - 0.62 / height),
        ncols=5,
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
        columnspacing=1.4,
        handletextpad=0.5,
    )


def _dress(axes: Axes, grid: str, xlabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=9, color=_INK)
    axes.tick_params(labelsize=8.5, colors=_INK)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_EDGE)
