"""Measurements, each run as `python -m benchmarks.NAME`. The last line that one prints is one JSON object."""
