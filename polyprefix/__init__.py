"""The face of Polyprefix: `from polyprefix import Client, AsyncClient`, and the command `polyprefix`."""

from importlib.metadata import version

from clients.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = version("polyprefix")
