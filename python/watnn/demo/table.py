"""The table that the demo prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from watnn.demo.digits import BLUR_STD, NOISE_STD
from watnn.demo.summary import ROWS, Score, byte_count
from watnn.demo.variants import PLAIN, VARIANTS

_LABELS = {
    "aom": "AOM: the plain weight",
    "dom": "DOM: fixed draws",
    "aom_noise": f"noise, std {NOISE_STD}",
    "aom_blur": f"blur, std {BLUR_STD} pixels",
    "aom_shift": "shift by 1 pixel",
    "aom_as_trained": "AOM, BN as trained",
    "dom_as_trained": "DOM, BN as trained",
}
_STYLES = {1: "green", 0: "", -1: "red"}
_NONE = Text("-", style="dim")


def build_table(
    table: Mapping[str, Mapping[str, Score | None]],
    costs: Mapping[str, Mapping[str, float | None]],
    times: Mapping[str, Mapping[str, float]],
    seeds: int,
) -> Table:
    """One column a variant, one row a quantity; green and red as in Score.standing."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    spread = f"mean ± std of {seeds} seeds" if seeds > 1 else "one seed"
    drawn.add_column(f"accuracy in %\n{spread}", no_wrap=True)
    for variant in VARIANTS.values():
        drawn.add_column(variant.label.replace(" ", "\n"), justify="right", no_wrap=True)
    for heading, metrics in ROWS.items():
        _add_heading(drawn, heading)
        for metric in metrics:
            drawn.add_row(f"  {_LABELS[metric]}", *(_cell(table[name][metric]) for name in VARIANTS))
    _add_heading(drawn, "cost")
    for label, value in _cost_rows(costs, times):
        drawn.add_row(f"  {label}", *(value(name) for name in VARIANTS))
    return drawn


def _add_heading(drawn: Table, heading: str) -> None:
    if drawn.row_count:
        drawn.add_row()
    drawn.add_row(Text(heading, style="bold"))


def _cell(score: Score | None) -> Text:
    if score is None:
        return _NONE
    spread = "" if score.std is None else f" ± {score.std:.1f}"
    return Text(f"{score.mean:.1f}{spread}", style=_STYLES[score.standing])


def _cost_rows(
    costs: Mapping[str, Mapping[str, float | None]], times: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, Callable[[str], str | Text]]]:
    def cost(key: str, form: Callable[[float], str]) -> Callable[[str], str | Text]:
        return lambda name: _NONE if costs[name][key] is None else form(costs[name][key])

    def beyond(count: float) -> str:
        return f"+{byte_count(count)}"

    def share(flops: float) -> str:
        return f"{flops / costs[PLAIN]['aom_flops']:.0%}"

    def million(flops: float) -> str:
        return f"{flops / 1e6:.2f}"

    return [
        ("training step, ms", lambda name: f"{times[name]['step_ms']:.1f}"),
        ("  times plain's", lambda name: f"{times[name]['times_plain']:.2f}"),
        (
            "kept for backward",
            lambda name: (
                byte_count(costs[PLAIN]["saved_bytes"]) if name == PLAIN else beyond(costs[name]["saved_beyond_plain"])
            ),
        ),
        ("  if SW were a tensor", cost("materialised_beyond_plain", beyond)),
        ("MFLOP an image, AOM", cost("aom_flops", million)),
        ("  DOM, exported", cost("dom_flops", million)),
        ("  of plain's", cost("dom_flops", share)),
    ]
