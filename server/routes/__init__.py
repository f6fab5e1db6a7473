"""The HTTP routes, one file per group. Each handler reads a request, asks for the work, and shapes the answer."""
