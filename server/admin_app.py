"""An application of the operator's routes alone, for a store that is opened beside any server.

Whoever can write to the store's files and registry is its operator, so it asks for no key.
"""

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from prefix_store.home import Place
from prefix_store.store import PrefixStore
from prefix_store.tenants import LOCAL_TENANT, Principal, TenantLimits
from prefix_store.tenants import Scope as KeyScope
from server.access import OpenAccess
from server.administration import Administration
from server.audit import AuditLog
from server.http import answer_errors
from server.log import make_logger
from server.routes import admin

OWNER = Principal(
    tenant=LOCAL_TENANT, scopes=frozenset({KeyScope.OPERATOR}), key_id="", weight=1.0, limits=TenantLimits()
)
REQUEST_ID = "command"


def create_admin_app(store: PrefixStore, place: Place) -> ASGIApp:
    app = FastAPI(openapi_url=None)
    app.state.access = OpenAccess(OWNER)
    app.state.administration = Administration(store, AuditLog.of(place, make_logger()), tell=lambda found: None)
    answer_errors(app)
    app.include_router(admin.router)

    async def with_request_id(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["request_id"] = REQUEST_ID
        await app(scope, receive, send)

    return with_request_id
