"""The tests that a GPU is to run, by what they tell: where time is short, the first of them are run.

With WAT_TEST_DEVICE=cuda, which leaves out what needs no GPU and shortens what is random (tests/conftest.py). Twelve
processes take more than two minutes on an H200; what takes the time is compiling, not computing.
"""

SUITES: tuple[str, ...] = (
    "tests/triton/check_philox.py",  # everything rests on the draws; a few small kernels, seconds
    "tests/gpu",  # launches, scratch, graphs, streams, memory, and values at sizes that the CPU checks lack; half the time
    "tests/cuda/test_linear.py",  # the CUDA kernels, with the cases of their emulation; nothing is compiled
    "tests/cuda/test_depthwise.py",
    "tests/cuda/test_depthwise_dims.py",
    "tests/triton/check_boxes.py",  # the designs for chips that move boxes, in bf16
    "tests/triton/check_conv.py",  # the Triton kernels against the reference; many small problems, each is compiled
    "tests/triton/check_conv_dims.py",  # sequences and transposed convolutions, by the same kernels
    "tests/triton/check_linear.py",
    "tests/triton/check_noise.py",  # the fallback's noise, seconds
    "tests/ops/test_conv.py",  # what every backend has to do: values, higher gradients, opcheck
    "tests/ops/test_conv_dims.py",
    "tests/ops/test_linear.py",
    "tests/watnn/test_layers.py",  # the modules, on whatever backend they choose
)
