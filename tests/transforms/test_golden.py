"""Tap maps and their probabilities against torchvision's own, recorded in tests/golden."""

import json
from pathlib import Path

import pytest
import torch
from watnn import transforms
from watnn.transforms import functional

_GOLDEN = Path(__file__).parents[1] / "golden"
_DISTRIBUTIONS = json.loads((_GOLDEN / "distributions.json").read_text())["distributions"]
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


@pytest.mark.parametrize("case", _DISTRIBUTIONS, ids=lambda case: f"{case['name']}-{case['kernel_size']}")
def test_distribution(case):
    # torchvision's RandomResizedCrop takes the size first; here it is the kernel's
    transform = eval(case["name"].replace("kernel_size, ", ""), vars(transforms))
    kh, kw = case["kernel_size"]
    table = transform.tap_table((kh, kw))
    seen = torch.stack([_dense(entry["entries"], kh * kw) for entry in case["maps"]])
    frequencies = torch.tensor([entry["probability"] for entry in case["maps"]], dtype=torch.float64)

    distance = (table.maps.unsqueeze(1) - seen.unsqueeze(0)).abs().amax((2, 3))  # (ours, theirs)
    assert distance.amin(0).max() < 1e-5, "torchvision drew a map that the table does not hold"
    assert distance.amin(1).max() < 1e-5, "the table holds a map that torchvision never drew"
    assert len(table) == len(seen)
    probabilities = table.probabilities[distance.argmin(0)]
    standard_errors = (probabilities * (1 - probabilities) / case["draws"]).sqrt()
    assert ((frequencies - probabilities).abs() <= 4 * standard_errors).all()
