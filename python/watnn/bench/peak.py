"""The peaks of one case in a process of its own: `python -m watnn.bench.peak <request as JSON>` prints them as JSON."""

from __future__ import annotations

import json
import sys

import torch

from watnn.bench.case import DTYPES, Options
from watnn.bench.runner import contenders_of, peaks_of
from watnn.bench.suites import SUITES


def main(request: dict) -> list[int | None]:
    torch.set_num_threads(request["threads"])
    case = next(case for case in SUITES[request["suite"]]() if case.name == request["case"])
    options = Options(
        request["device"], DTYPES[request["dtype"]], tuple(request["backends"]), compiled=request["compiled"]
    )
    return peaks_of(contenders_of(case, options), request["device"])


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
