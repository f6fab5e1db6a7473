"""Talks to a Polyprefix server over HTTP: the Python client, sync and async, and the commands.

Knows the HTTP contract. Knows nothing of tensors, the engine or the server's code, so it needs httpx and no torch.
"""
