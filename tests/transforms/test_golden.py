"""Tap maps and their probabilities against torchvision's own, recorded in tests/golden."""

import json
from pathlib import Path

import pytest
import torch
from watnn.transforms import functional

_GOLDEN = Path(__file__).parents[1] / "golden"
_CASES = json.loads((_GOLDEN / "tap_maps.json").read_text())["cases"]


def _dense(entries, taps):
    tap_map = torch.zeros(taps, taps)
    for output, source, coefficient in entries:
        tap_map[output, source] = coefficient
    return tap_map


def test_all_cases_are_there():
    assert len(_CASES) == 415


@pytest.mark.parametrize("case", _CASES, ids=lambda case: "-".join(str(v) for k, v in case.items() if k != "entries"))
def test_tap_map(case):
    arguments = {name: value for name, value in case.items() if name not in ("op", "entries")}
    tap_map = getattr(functional, case["op"])(**arguments)
    kh, kw = case["kernel_size"]
    torch.testing.assert_close(tap_map, _dense(case["entries"], kh * kw), atol=1e-5, rtol=0)
