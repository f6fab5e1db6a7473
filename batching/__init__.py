"""One frozen GPT-2, many rows, one thread that owns the device."""
