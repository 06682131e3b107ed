"""Where the two import packages of this one distribution lie; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(".", include=["wat_kernels", "wat_kernels.*"]), *find_packages("python")],
    package_dir={"watnn": "python/watnn"},
)
