"""One thread: other work on the machine must not slow every small product down."""

import torch

torch.set_num_threads(1)
