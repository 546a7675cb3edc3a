"""Benchmarks: side by side with a peer in one run, as ratios of medians with their spread. `make bench` runs them all."""
