"""What `import watnn` costs and prints."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.cpu_only

SLOW_OR_LOUD = ["torch._dynamo", "torch._inductor", "torch.utils.cpp_extension", "matplotlib", "rich"]


def test_import_brings_in_neither_the_compiler_nor_optional_packages():
    script = (
        "import sys, torch; before = set(sys.modules); import watnn, watnn.cli, watnn.info; "
        f"print(sorted({{*{SLOW_OR_LOUD!r}}} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
