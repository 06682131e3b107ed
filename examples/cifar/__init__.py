"""Training the six networks of the WAT paper on CIFAR-10 or CIFAR-100: `python -m examples.cifar --help`."""
