"""Our engine beside others, each in an environment of its own: `python -m benchmarks.peers`."""
