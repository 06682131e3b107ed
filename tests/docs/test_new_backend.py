"""The backend that docs/new_backend.md writes down is a right one, where the page says it goes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.snippets import sections

ROOT = Path(__file__).parents[2]


def replace(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_the_page_s_backend(tmp_path):
    """In a copy of wat_kernels: the file, the name in NAMES, the module in BACKENDS. check_new_backend.py judges it."""
    package = shutil.copytree(ROOT / "wat_kernels", tmp_path / "wat_kernels", ignore=shutil.ignore_patterns("*.so"))
    op = package / "ops/conv"
    (code,) = sections("new_backend.md")["The backend"]
    (op / "mirror.py").write_text(code)
    replace(package / "dispatch.py", '"library", "reference")', '"library", "reference", "mirror")')
    replace(op / "op.py", "import cuda, library, native, reference", "import cuda, library, mirror, native, reference")
    replace(op / "op.py", '    "reference": reference,\n', '    "reference": reference,\n    "mirror": mirror,\n')
    check = Path(__file__).with_name("check_new_backend.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), str(check)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'python'}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
