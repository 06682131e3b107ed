"""The README's benchmark blocks: made of the store, made again the same, and known when stale."""

import pytest
from watnn.bench import store

from benchmarks import readme
from tests.benchmarks.made import row

BEFORE = """# A project

<!-- bench:headline A_Machine -->
<!-- /bench -->
between
<!-- bench:memory A_Machine -->
old
<!-- /bench -->
<!-- bench:picture A_Machine -->
<!-- /bench -->
after
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(BEFORE)
    for one in (
        row(case="a", vs_plain=0.5, vs_official=0.25), row(case="b", vs_plain=2.0, vs_official=0.25),
        row(case="a", role="plain", variant="", ms=2.0), row(case="b", role="plain", variant="", ms=0.5),
        row(case="a", vs_plain=0.1, dtype="bf16"), row(case="a", vs_plain=0.1, mode="forward"),
        row(suite="linear", variant="dropconnect", vs_plain=0.75), row(suite="linear", role="plain", variant="", ms=2.0),
        row(suite="memory", mode="memory", ms=None, saved_above_plain=8, peak_above_plain=-1_500_000),
    ):  # fmt: skip
        _store(tmp_path, one)
    return tmp_path


def _store(root, one):
    store.append(store.file_in_store(root / "benchmarks" / "results", one), one)


def test_blocks_are_what_the_store_says(root):
    assert len(readme.stale(root)) == 4  # three blocks and a picture that is not there
    assert readme.write(root) == [root / "README.md", root / "docs/bench_A_Machine.png"]
    assert (
        (root / "README.md").read_text()
        == """# A project

<!-- bench:headline A_Machine -->
| layer | draws | plain layer | official |
| --- | --- | --- | --- |
| 3×3 convolution, 2 shapes | `RandomAffine(0, translate=(0.3, 0.3))` | 1.00 (0.50 to 2.00) | 0.25 (0.25 to 0.25) |
| linear, 1 shape | `DropConnect(0.3)` | 0.75 (0.75 to 0.75) | - |

A Machine, avx2, 2 threads, fp32, torch 2.13.0, commit abc: `benchmarks/results/A_Machine`, made by `watnn bench`.
<!-- /bench -->
between
<!-- bench:memory A_Machine -->
| shape | draws | layer | kept for backward | peak |
| --- | --- | --- | --- | --- |
| a case | `RandomAffine(0, translate=(0.3, 0.3))` | WATConv2d (native) | +8 B | -1.5 MB |

A Machine, avx2, 2 threads, fp32, torch 2.13.0, commit abc: `benchmarks/results/A_Machine`, made by `watnn bench`.
<!-- /bench -->
<!-- bench:picture A_Machine -->
![Time of forward and backward against the baselines on A Machine](docs/bench_A_Machine.png)
<!-- /bench -->
after
"""
    )


def test_writing_again_changes_nothing(root):
    readme.write(root)
    first = (root / "README.md").read_text(), (root / "docs/bench_A_Machine.png").read_bytes()
    assert readme.stale(root) == []
    readme.write(root)
    assert ((root / "README.md").read_text(), (root / "docs/bench_A_Machine.png").read_bytes()) == first


def test_a_changed_number_and_a_new_row_are_stale(root):
    readme.write(root)
    text = (root / "README.md").read_text()
    (root / "README.md").write_text(text.replace("1.00 (0.50", "0.99 (0.50"))
    assert readme.stale(root) == ["README.md: the block bench:headline A_Machine is not what the results say"]
    (root / "README.md").write_text(text)
    _store(root, row(case="b", vs_plain=1.0))
    assert readme.stale(root) == [
        "README.md: the block bench:headline A_Machine is not what the results say",
        "docs/bench_A_Machine.png was not made of the results",
    ]


def test_what_cannot_be_made_says_so(root):
    (root / "README.md").write_text("no block")
    assert readme.stale(root) == ["README.md has no block <!-- bench:... -->"]
    (root / "README.md").write_text("<!-- bench:speed A_Machine -->\n<!-- /bench -->")
    with pytest.raises(ValueError, match="bench:speed; accepted are headline, memory, picture"):
        readme.write(root)
    (root / "README.md").write_text("<!-- bench:headline Elsewhere -->\n<!-- /bench -->")
    with pytest.raises(ValueError, match="no fp32 results in benchmarks/results/Elsewhere"):
        readme.write(root)


def test_the_command_checks_and_writes(root, monkeypatch, capsys):
    monkeypatch.setattr(readme, "ROOT", root)
    assert readme.main(["--check"]) == 1
    assert "bench:headline A_Machine is not what the results say" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
