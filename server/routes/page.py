"""The web page and its files, open to everybody: what it asks of the other routes needs a key like anybody's."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

# Nothing from elsewhere, nothing inline, in no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}
FILES = StaticFiles(directory=Path(__file__).parents[1] / "page")

router = APIRouter(tags=["page"])


@router.head("/", include_in_schema=False)
@router.get(
    "/", response_class=Response, responses={200: {"content": {"text/html": {}}, "description": "The web page"}}
)
async def page(request: Request) -> Response:
    return await page_file(request, "index.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(request: Request, name: str) -> Response:
    response = await FILES.get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response
