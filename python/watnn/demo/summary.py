"""From what was measured per seed to the numbers of the table, their comparison with plain, and a few sentences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from watnn.demo.evaluation import METRICS
from watnn.demo.variants import PLAIN, VARIANTS

ROWS = {  # the accuracies in the order of the table, each with the heading it stands under
    "clean images": ("aom", "dom", "aom_as_trained", "dom_as_trained"),
    "corrupted images, AOM": ("aom_noise", "aom_blur", "aom_shift"),
}
_SUBJECTS = {
    "aom": "clean images",
    "aom_noise": "noise",
    "aom_blur": "blur",
    "aom_shift": "shift",
}


class SeedResult(NamedTuple):
    """What one seed gave, by variant.

    accuracy: by metric, in per cent; loss: of each epoch; curve: (epoch, accuracy in AOM); step_seconds: of each step;
    export_difference: between dom(key) and the exported DOM model, relative; None for plain
    """

    seed: int
    accuracy: Mapping[str, Mapping[str, float | None]]
    loss: Mapping[str, Sequence[float]]
    curve: Mapping[str, Sequence[tuple[int, float]]]
    step_seconds: Mapping[str, Sequence[float]]
    export_difference: Mapping[str, float | None]


class Score(NamedTuple):
    """One accuracy of one variant over the seeds. std is None for a single seed.

    standing: 1 where it is better than plain's in every seed, -1 where it is worse in every seed, else 0; 0 also for a
    single seed
    """

    mean: float
    std: float | None
    per_seed: list[float]
    standing: int


def scores(results: Sequence[SeedResult]) -> dict[str, dict[str, Score | None]]:
    """Score of each variant and metric; None where the metric does not apply."""
    return {name: {metric: _score(results, name, metric) for metric in METRICS} for name in VARIANTS}


def _score(results: Sequence[SeedResult], name: str, metric: str) -> Score | None:
    values = [result.accuracy[name][metric] for result in results]
    if None in values:
        return None
    plain = [result.accuracy[PLAIN][metric] for result in results]
    standing = 0
    if len(values) > 1 and None not in plain:
        better = [value > other for value, other in zip(values, plain, strict=True)]
        worse = [value < other for value, other in zip(values, plain, strict=True)]
        standing = all(better) - all(worse)
    std = statistics.stdev(values) if len(values) > 1 else None
    return Score(statistics.fmean(values), std, values, standing)


def step_times(results: Sequence[SeedResult]) -> dict[str, dict[str, float]]:
    """Of each variant the median training step in milliseconds, and its ratio to plain's step on the same batch, median."""
    steps = {name: [s for result in results for s in result.step_seconds[name]] for name in VARIANTS}
    return {
        name: {
            "step_ms": 1000 * statistics.median(seconds),
            "times_plain": statistics.median(s / p for s, p in zip(seconds, steps[PLAIN], strict=True)),
        }
        for name, seconds in steps.items()
    }


def findings(table: Mapping[str, Mapping[str, Score | None]]) -> list[str]:
    """What the accuracies say, in sentences."""
    seeds = len(table[PLAIN]["aom"].per_seed)
    sentences = [_comparison(table, metric, seeds) for metric in _SUBJECTS]
    sentences += [_modes(table), _batch_norm(table)]
    if seeds > 1:
        sentences.append(
            f"With {seeds} seeds two equal methods keep one order in every seed in 1 case of {2 ** (seeds - 1)}: small "
            "gaps are no evidence."
        )
    else:
        sentences.append("One seed says nothing about the spread.")
    return sentences


def _comparison(table: Mapping[str, Mapping[str, Score | None]], metric: str, seeds: int) -> str:
    """Who is highest, and who is ahead of or behind plain in every seed."""
    plain = table[PLAIN][metric].mean
    best = max(table, key=lambda name: table[name][metric].mean)
    sentence = f"{_SUBJECTS[metric].capitalize()}: {VARIANTS[best].label} is highest, {table[best][metric].mean:.1f} %"
    sentence += "" if best == PLAIN else f" (plain {plain:.1f} %)"
    if seeds == 1:
        return f"{sentence}."
    groups = []
    for standing, words in ((1, "ahead of"), (-1, "behind")):
        gaps = {
            name: scores[metric].mean - plain for name, scores in table.items() if scores[metric].standing == standing
        }
        if gaps:
            groups.append(f"{words} plain in every seed: {_by_variant(gaps, '+.1f')}")
    return f"{sentence}; {'; '.join(groups) or 'none is ahead of or behind plain in every seed'}."


def _modes(table: Mapping[str, Mapping[str, Score | None]]) -> str:
    gaps = {name: scores["dom"].mean - scores["aom"].mean for name, scores in table.items() if scores["dom"]}
    return f"A fixed draw (DOM) in place of the plain weight (AOM): {_by_variant(gaps, '+.1f')}."


def _batch_norm(table: Mapping[str, Mapping[str, Score | None]]) -> str:
    """Whether the running statistics of the training are good enough, where they lose more than a point."""
    parts = []
    for mode in ("aom", "dom"):
        gaps = {
            name: scores[f"{mode}_as_trained"].mean - scores[mode].mean
            for name, scores in table.items()
            if scores[mode]
        }
        losses = {name: gap for name, gap in gaps.items() if gap < -1}
        if losses:
            parts.append(f"in {mode.upper()} {_by_variant(losses, '+.1f')}")
    if not parts:
        return "BatchNorm statistics as training left them do as well as re-estimated ones, within a point."
    return f"BatchNorm statistics as training left them, instead of re-estimated ones: {'; '.join(parts)}."


def cost_findings(
    costs: Mapping[str, Mapping[str, float | None]], times: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """What the variants cost: time first, then what is the same at every run."""
    others = [name for name in VARIANTS if name != PLAIN]
    slower = _by_variant({name: times[name]["times_plain"] for name in others}, ".1f")
    memory = max(costs[name]["saved_beyond_plain"] for name in others)
    recorded = max(costs[name]["materialised_beyond_plain"] for name in others)
    flops = _by_variant({name: costs[name]["dom_flops"] / costs[PLAIN]["aom_flops"] for name in others}, ".0%")
    return [
        f"Here a training step takes this many times plain's: {slower}.",
        f"For its backward pass it keeps at most {byte_count(memory)} more than plain's ({byte_count(recorded)} more if SW "
        "were a tensor that autograd records).",
        f"An exported DOM model computes this share of plain's FLOPs: {flops}.",
    ]


def _by_variant(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{VARIANTS[name].label} {value:{form}}" for name, value in values.items())


def byte_count(count: float) -> str:
    """123 B, 4.5 kB, 4.5 MB; powers of 1000."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if abs(count) < 1e6 else f"{count / 1e6:.2f} MB"
