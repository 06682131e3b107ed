"""Rows in files: appended and read back, complete after each row; the bars; the pictures."""

import csv
import dataclasses
import io
import json

import pytest
from matplotlib.colors import to_hex
from watnn.bench import figures, store
from watnn.bench.bars import BARS, LEAST_SPEEDUP, standings
from watnn.bench.rows import FIELDS
from watnn.bench.store import Output
from watnn.bench.suites.conv import SMALL

from tests.benchmarks.made import row


def test_what_is_appended_is_what_is_read(tmp_path):
    rows = [row(ms=1.2345, at=3.0, saved_bytes=8, note="a, b"), row(suite="linear", ms=None, threads=1)]
    for one in rows:
        store.append(store.file_in_store(tmp_path, one), one)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.csv")) == [
        "A_Machine/conv.csv",
        "A_Machine/linear.csv",
    ]
    assert store.read(tmp_path / "A_Machine") == rows
    store.append(tmp_path / "A_Machine" / "conv.csv", rows[0])
    lines = (tmp_path / "A_Machine" / "conv.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == (",".join(FIELDS), 3)


def test_of_equal_measurements_the_later_counts():
    rows = [row(ms=1.0), row(ms=2.0, mode="forward"), row(ms=3.0, time="later", commit="def")]
    assert store.latest(rows) == [rows[2], rows[1]]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv has the columns of something else"):
        store.append(path, row())
    with pytest.raises(ValueError, match="something else"):
        Output(path, None, None)
    assert path.read_text() == "a,b\n1,2\n"


def test_a_file_of_an_earlier_version_gets_the_columns_it_lacks(tmp_path):
    path, old = tmp_path / "conv.csv", row(ms=1.5, note="a, b")
    store.append(path, old)
    lacking = ("timed", "host_ms", "eager_ms")
    with path.open(newline="") as file:
        (line,) = csv.DictReader(file)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in FIELDS if name not in lacking], extrasaction="ignore")
        writer.writeheader()
        writer.writerow(line)
    assert store.read(tmp_path) == [old]
    new = row(ms=2.0, timed="graph", host_ms=0.25)
    store.append(path, new)
    assert store.read(tmp_path) == [old, new]
    assert path.read_text().splitlines()[0] == ",".join(FIELDS)
    assert [file.name for file in tmp_path.iterdir()] == ["conv.csv"]


def test_a_file_that_lacks_what_every_row_has_is_refused(tmp_path):
    path = tmp_path / "conv.csv"
    path.write_text("suite,case,mode,role,name\nconv,a,full,wat,WATConv2d\n")
    with pytest.raises(ValueError, match=r"conv\.csv has the columns of something else"):
        store.read(tmp_path)
    with pytest.raises(ValueError, match="something else"):
        store.append(path, row())


@pytest.mark.parametrize(
    ("machine", "folder"),
    [("AMD EPYC", "AMD_EPYC"), ("Intel(R) X / 9", "Intel_R_X_9"), ("..", "unknown"), ("", "unknown")],
)
def test_a_machine_is_a_folder(machine, folder):
    assert store.folder_name(machine) == folder


def test_files_are_complete_after_each_row(tmp_path):
    stream = io.StringIO()
    output = Output(tmp_path / "rows.csv", tmp_path / "rows.json", tmp_path / "store")
    streamed = Output(None, stream, None)
    for count in (1, 2):
        output.add(row(ms=float(count)))
        streamed.add(row(ms=float(count)))
        document = json.loads((tmp_path / "rows.json").read_text())
        assert [one["ms"] for one in document] == [1.0, 2.0][:count]
        assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + count
        assert len(store.read(tmp_path / "store" / "A_Machine")) == count
    streamed.close()
    assert [one["ms"] for one in json.loads(stream.getvalue())] == [1.0, 2.0]
    assert document[0] == dataclasses.asdict(row(ms=1.0))


def test_bars_are_means_over_the_shapes():
    rows = [row(case="a", vs_plain=0.5), row(case="b", vs_plain=2.0), row(case="a", mode="forward", vs_plain=9.0)]
    (mean,) = standings(rows)
    assert (mean.name, mean.value, mean.met) == ("conv, translate / plain, mean", pytest.approx(1.0), False)
    identity = [row(case="a", variant="identity", vs_plain=0.5), row(case="b", variant="identity", vs_plain=1.2)]
    mean, worst = standings(identity)
    assert (mean.value, mean.met, worst.value, worst.met) == (pytest.approx(0.6**0.5), True, 1.2, False)
    assert [(bar.mean, bar.worst) for bar in BARS if bar.variants == ("identity",)] == [(1.0, 1.15)]


def test_bars_of_overhead_threads_and_memory():
    small = {"case": str(SMALL), "mode": "forward"}
    rows = [
        row(ms=0.030, **small), row(ms=0.010, role="plain", variant="", **small),
        row(suite="scaling", curve="threads", at=1.0, ms=3.0), row(suite="scaling", curve="threads", at=2.0, ms=2.0),
        row(suite="memory", mode="memory", saved_above_plain=8),
    ]  # fmt: skip
    overhead, speedup, saved = standings(rows)
    assert (overhead.value, overhead.met) == (pytest.approx(20.0), False)
    assert (speedup.value, speedup.bar, speedup.met) == (1.5, LEAST_SPEEDUP, False)
    assert (saved.value, saved.met) == (8, True)
    assert standings([]) == []


def _timed():
    """Two shapes: half and twice the plain layer's time; a quarter and the whole of the pipeline's."""
    work = {"of_limit": 0.5, "gflops": 4.0, "gbytes": 2.0, "limit_gflops": 5000.0, "limit_gbytes": 4000.0}
    for case, ms, plain, official in (("a", 1.0, 2.0, 4.0), ("b", 2.0, 1.0, 2.0)):
        yield row(case=case, ms=ms, vs_plain=ms / plain, vs_official=ms / official, **work)
        yield row(case=case, role="plain", name="nn.Conv2d", variant="", backend="", ms=plain, **work)
        yield row(case=case, role="official", name="pipeline", backend="", ms=official, **work)


def test_the_picture_of_ratios_has_a_bar_for_each_baseline_and_a_line_at_one():
    (axes,) = figures.ratios(list(_timed())).axes
    bars = [(bar.get_width(), to_hex(bar.get_facecolor())) for bar in axes.patches]
    assert bars == [
        (pytest.approx(1.0), figures.COLOURS["plain"].lower()),
        (pytest.approx(0.5), figures.COLOURS["official"].lower()),
    ]
    lines = [line.get_xdata() for line in axes.lines]
    assert list(lines[0]) == [1.0, 1.0]
    assert [list(line) for line in lines[1:]] == [[0.5, 2.0], [0.25, 1.0]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["conv, translate\n2 shapes"]


def test_the_picture_of_shapes_has_every_time_by_the_plain_one():
    (axes,) = figures.shapes(list(_timed())).axes
    points = {(line.get_gid(), line.get_ydata()[0]): line.get_xdata()[0] for line in axes.lines if line.get_gid()}
    assert points == {("wat", 0): 0.5, ("official", 0): 2.0, ("wat", 1): 2.0, ("official", 1): 2.0}


def test_the_roofline_has_rates_under_the_roof():
    (axes,) = figures.roofline(list(_timed())).axes
    lines = {line.get_gid(): line for line in axes.lines}
    assert list(lines["wat"].get_xdata()) == [2.0, 2.0]  # FLOP a byte
    assert list(lines["wat"].get_ydata()) == [4000.0, 2000.0]  # GFLOP a second
    assert list(lines["roof"].get_xdata()) == pytest.approx([1.2, 1.25, 4.0])
    assert list(lines["roof"].get_ydata()) == pytest.approx([4800.0, 5000.0, 5000.0])


def test_the_picture_of_scaling_has_a_line_for_each_role():
    rows = [
        row(
            suite="scaling",
            curve="taps",
            at=float(at),
            case=f"taps={at}",
            role=role,
            ms=ms * at,
            ms_lower=0,
            ms_upper=9,
        )
        for at in (9, 1, 5)
        for role, ms in (("wat", 1.0), ("plain", 2.0))
    ]
    (axes,) = figures.scaling(rows).axes
    lines = {line.get_gid(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines == {"wat": ([1, 5, 9], [1.0, 5.0, 9.0]), "plain": ([1, 5, 9], [2.0, 10.0, 18.0])}
    assert axes.get_ylim()[0] == axes.get_xlim()[0] == 0  # so that a line through zero shows


def test_the_picture_of_memory_has_bytes_above_plain():
    rows = [
        row(suite="memory", mode="memory", saved_above_plain=8, peak_above_plain=-2_000_000),
        row(suite="memory", mode="memory", role="official", saved_above_plain=3_000_000, peak_above_plain=4_000_000),
        row(suite="memory", mode="memory", role="plain", variant="", saved_above_plain=0, peak_above_plain=0),
    ]
    saved, peak = figures.memory(rows).axes
    assert [bar.get_width() for bar in saved.patches] == [8e-6, 3.0]
    assert [bar.get_width() for bar in peak.patches] == [-2.0, 4.0]
    assert {"+8 B", "+3.0 MB"} == {text.get_text() for text in saved.texts}


def test_pictures_are_made_of_what_there_is(tmp_path):
    rows = [
        *_timed(),
        *(dataclasses.replace(one, dtype="bf16") for one in _timed()),
        row(mode="memory", ms=None, note="no"),
    ]
    files = figures.save_figures(tmp_path, rows, ("png", "svg"), Description="a digest")
    names = [
        f"{name}_{dtype}.{form}"
        for dtype in ("fp32", "bf16")
        for name in ("ratios", "shapes", "roofline")
        for form in ("png", "svg")
    ]
    assert [path.name for path in files] == names
    assert all(b"a digest" in path.read_bytes() for path in files)
