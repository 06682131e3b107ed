"""The main job: a small network on real digits, trained plain, with WAT and with noise, and compared."""
