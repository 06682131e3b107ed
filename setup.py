"""Builds the compiled libraries, wat_kernels/_native.abi3.so and _cuda.abi3.so, next to the pure-Python packages.

build_tools/ says how, and which environment variables there are. Without a C++ compiler, or without nvcc, the install
succeeds, says so in one line, and everything runs on the other backends.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, str(Path(__file__).parent))  # pip does not run setup.py from its folder
from build_tools.command import build_command, extensions

found = extensions()
setup(
    packages=find_packages(".", include=["wat_kernels", "wat_kernels.*"]) + find_packages("python"),
    package_dir={"watnn": "python/watnn"},
    ext_modules=found,
    cmdclass={"build_ext": build_command()} if found else {},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if found else {},
)
