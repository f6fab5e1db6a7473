"""The asyncio side of Polyprefix: HTTP, tokenizing, streaming, metrics. Hands work to `batching`; calls no torch."""
