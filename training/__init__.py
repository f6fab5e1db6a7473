"""Makes prefixes: prefix-tuning on a frozen backbone, and evaluation."""
