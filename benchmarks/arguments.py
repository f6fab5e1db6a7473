"""What the benchmarks' command lines share: where the model runs, and where the figures go.

Knows argparse. Knows nothing of what is measured.
"""

import argparse
from pathlib import Path

import torch

from batching.gpt2 import DTYPES, default_dtype, resolve_device


def make_parser(description: str) -> argparse.ArgumentParser:
    """With `device`, `dtype` and `out`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--out", type=Path)
    return parser


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, str]:
    """What "auto" comes to here."""
    device = resolve_device(args.device)
    return device, default_dtype(device) if args.dtype == "auto" else args.dtype
