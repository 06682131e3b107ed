"""The tests that a GPU is to run, those first that tell most where time is short."""

SUITES = (
    "tests/gpu",  # launches, graphs, streams, memory; values at sizes and layouts that the CPU checks lack
    "tests/triton/check_philox.py",  # the random numbers, bit for bit
    "tests/triton/check_noise.py",
    "tests/triton/check_conv2d.py",  # the Triton kernels against the reference, small problems
    "tests/triton/check_linear.py",
    "tests/cuda/test_depthwise.py",  # the CUDA kernels, with the cases of their emulation
    "tests/cuda/test_linear.py",
    "tests/cuda/test_draws.py",
    "tests/ops/test_conv2d.py",  # what every backend has to do, with WAT_TEST_DEVICE
    "tests/ops/test_linear.py",
    "tests/watnn/test_layers.py",
)
