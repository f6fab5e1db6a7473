"""A file as an answer, which takes of the room for files until its reader has it.

Knows ASGI and bytes. Knows nothing of what the file is.
"""

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.file_room import FileRoom

PIECE = 64 << 10  # bytes: about what a connection holds for a slow reader before it makes the sender wait


class FileAnswer(Response):
    """Sent piece by piece, so that the server knows when it is taken. Raises `Unavailable` where room lacks."""

    def __init__(self, body: bytes, media_type: str, headers: dict[str, str], room: FileRoom, tenant: str) -> None:
        super().__init__(body, media_type=media_type, headers=headers)
        self._room = room
        self._tenant = tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room.taken(self._tenant, len(self.body)):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for start in range(0, len(self.body), PIECE):
                piece = self.body[start : start + PIECE]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
