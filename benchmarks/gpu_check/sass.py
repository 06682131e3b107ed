"""What a compiled kernel consists of: its instructions by kind, counted in the disassembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

# opcodes that say how a kernel works: matrix units, copies past the registers, shared memory, barriers, spills
KINDS = {
    "matrix": ("HGMMA", "HMMA", "QGMMA", "IMMA", "DMMA"),
    "copies": ("LDGSTS", "UTMALDG", "UBLKCP"),
    "loads": ("LDG",),
    "stores": ("STG", "RED", "ATOMG"),
    "shared loads": ("LDS", "LDSM"),
    "shared stores": ("STS", "STSM"),
    "barriers": ("BAR", "WARPSYNC", "SYNCS"),
    "spills": ("LDL", "STL"),
}
# "        /*0a10*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], ... ;", a predicate "@!P0" may stand first
_LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")


def disassembled(cubin: bytes) -> str:
    """With the disassembler that Triton brings. Raises OSError or subprocess.CalledProcessError where it cannot."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([tools / "nvdisasm", "-hex", file.name], capture_output=True, text=True, check=True)
    return run.stdout


def counts(text: str) -> dict[str, int]:
    """Instructions by KINDS, and all of them as "instructions". text: of `disassembled`."""
    opcodes = Counter(found[1] for line in text.splitlines() if (found := _LINE.match(line)))
    kinds = {kind: sum(opcodes[opcode] for opcode in names) for kind, names in KINDS.items()}
    return {**kinds, "instructions": sum(opcodes.values())}
