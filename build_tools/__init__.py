"""How the two compiled libraries are built: `cpu.py` and `cuda.py` say what of, `command.py` is setuptools' build_ext.

Not installed. setup.py and the tests that compile kernels import it.
"""
