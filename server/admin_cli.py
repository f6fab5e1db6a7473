"""The operator's commands: `polyprefix admin tenant|key …` and `polyprefix store …`.

Each is one request to the operator's routes: over the network with `--url`, else to the same routes in this process, on
a directory that no server has open, or a bucket. Knows terminals and those routes.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import typer

from prefix_store.backup import restore as restore_backup
from prefix_store.errors import StoreError
from prefix_store.home import REGISTRY, place_of
from server.access import is_loopback
from server.admin_app import create_admin_app
from server.administration import open_store

SECONDS = 600.0  # verifying a large store takes its time

admin = typer.Typer(no_args_is_help=True, help="Manage tenants and their API keys.")
tenant = typer.Typer(no_args_is_help=True, help="Who may use the server, and how much of it.")
key = typer.Typer(no_args_is_help=True, help="What tenants prove themselves with.")
store = typer.Typer(no_args_is_help=True, help="Check, back up, restore and clean the store.")
admin.add_typer(tenant, name="tenant")
admin.add_typer(key, name="key")


def one_place(context: typer.Context, option: typer.CallbackParam, value: str | None) -> str | None:
    """Of a store and a server the one that is typed, whatever the shell has of the other."""
    typed = {name for name in ("store", "url") if is_typed(context, name)}
    if len(typed) == 2:
        raise typer.BadParameter("name a store or a server, not both")
    return None if option.name == "url" and typed == {"store"} else value


def is_typed(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)  # of what was typed it is known first
    return source is not None and source.name == "COMMANDLINE"


StorePlace = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="POLYPREFIX_STORE",
        callback=one_place,
        help="A directory that no server runs on, or a bucket's URL.",
    ),
]
Registry = Annotated[
    str | None, typer.Option(envvar="POLYPREFIX_REGISTRY", help="The database's URL, where the store is a bucket.")
]
Url = Annotated[str | None, typer.Option(envvar="POLYPREFIX_URL", callback=one_place, help="Ask this server instead.")]
ApiKey = Annotated[str | None, typer.Option(envvar="POLYPREFIX_API_KEY", help="An operator's key, for --url.")]
Name = Annotated[str, typer.Argument(metavar="TENANT")]
Weight = Annotated[float | None, typer.Option(help="Its share of a busy engine, relative to others'; default: 1")]
LimitOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=NUMBER",
        help="max_tasks, max_bytes, uploads_per_minute, upload_burst, requests_per_minute, tokens_per_minute or "
        "max_queued; may be given again. 'none' takes one of the last three away.",
    ),
]
HERE = "store"


@dataclass(frozen=True, slots=True)
class Where:
    """Where the routes answer."""

    store: str
    registry: str | None
    url: str | None
    api_key: str | None


@tenant.command("add")
def add_tenant(
    name: Name,
    weight: Weight = None,
    limit: LimitOptions = None,
    store: StorePlace = HERE,
    registry: Registry = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let somebody new in; they still need a key."""
    body = {"name": name, **given(weight=weight, limits=limits_of(limit))}
    show(ask(Where(store, registry, url, api_key), "POST", "/admin/tenants", json=body))


@tenant.command("list")
def list_tenants(store: StorePlace = HERE, registry: Registry = None, url: Url = None, api_key: ApiKey = None) -> None:
    """One line of JSON for each."""
    show(*ask(Where(store, registry, url, api_key), "GET", "/admin/tenants")["tenants"])


@tenant.command("set")
def set_tenant(
    name: Name,
    weight: Weight = None,
    limit: LimitOptions = None,
    enabled: Annotated[bool | None, typer.Option("--enabled", help="Accept its keys again.")] = None,
    store: StorePlace = HERE,
    registry: Registry = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Change what is named, and leave the rest."""
    body = given(weight=weight, limits=limits_of(limit), disabled=False if enabled else None)
    show(ask(Where(store, registry, url, api_key), "PATCH", tenant_path(name), json=body))


@tenant.command("disable")
def disable_tenant(
    name: Name, store: StorePlace = HERE, registry: Registry = None, url: Url = None, api_key: ApiKey = None
) -> None:
    """Refuse all its keys; its tasks stay."""
    show(
        ask(
            Where(store, registry, url, api_key),
            "PATCH",
            tenant_path(name),
            json={"disabled": True},
        )
    )


@key.command("create")
def create_key(
    name: Name,
    scope: Annotated[list[str] | None, typer.Option(help="generate, tasks or operator; default: the first two")] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.0, max=36500, help="Refuse it from then on.")] = None,
    store: StorePlace = HERE,
    registry: Registry = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print a new key. It is shown this once: only its hash is kept."""
    body: dict[str, Any] = {"tenant": name, "scopes": scope or ["generate", "tasks"]}
    if expires_in_days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=expires_in_days)).isoformat()
    typer.echo(ask(Where(store, registry, url, api_key), "POST", "/admin/keys", json=body)["secret"])


@key.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The eight characters after pp_.")],
    store: StorePlace = HERE,
    registry: Registry = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Refuse a key from now on."""
    show(ask(Where(store, registry, url, api_key), "DELETE", f"/admin/keys/{quote(key_id, safe='')}"))


@key.command("list")
def list_keys(
    name: Name, store: StorePlace = HERE, registry: Registry = None, url: Url = None, api_key: ApiKey = None
) -> None:
    """One line of JSON for each; none holds its secret."""
    show(*ask(Where(store, registry, url, api_key), "GET", "/admin/keys", params={"tenant": name})["keys"])


@store.command()
def verify(store: StorePlace = HERE, registry: Registry = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Read every file and record, and take damaged versions out of service. Exit status 1 where there were any."""
    damage = ask(Where(store, registry, url, api_key), "POST", "/admin/verify")["damage"]
    show(*damage)
    if damage:
        raise typer.Exit(1)


@store.command()
def backup(
    path: Annotated[Path, typer.Argument(help="A directory that is not there yet.")],
    store: StorePlace = HERE,
    registry: Registry = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Copy the store. With --url to a path on the server's machine. Exit status 1 where files were missing."""
    copied = ask(Where(store, registry, url, api_key), "POST", "/admin/backup", json={"path": str(path.absolute())})
    show(copied)
    if copied["left_out"]:
        raise typer.Exit(1)


@store.command()
def sweep(store: StorePlace = HERE, registry: Registry = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Remove files that no record needs."""
    show(ask(Where(store, registry, url, api_key), "POST", "/admin/sweep"))


@store.command()
def restore(
    path: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A backup.")],
    store: Annotated[str, typer.Option("--store", help="A directory that is not there yet.")] = HERE,
) -> None:
    """Make the store, which must not be there yet, as the backup has it. Exit status 1 where files are damaged."""
    place = place_of(store)
    if not isinstance(place, Path):
        raise typer.BadParameter("a backup is restored into a directory", param_hint="--store")
    try:
        copied = restore_backup(path, place)
    except StoreError as error:
        fail(str(error))
    show({"store": store, "num_files": copied.num_files, "left_out": copied.left_out})
    if copied.left_out:
        raise typer.Exit(1)


def ask(where: Where, method: str, path: str, **options: Any) -> Any:
    """The answer's JSON; what is refused ends the command with its reason."""
    try:
        return asyncio.run(_ask(where, method, path, **options))
    except StoreError as error:
        fail(str(error))
    except httpx.HTTPError as error:
        url = httpx.URL(where.url or "").copy_with(userinfo=b"")
        fail(f"no answer from {url}: {error or type(error).__name__}")
    except (ValueError, httpx.InvalidURL) as error:  # a weight that is no number, a key that no header can hold
        fail(f"that cannot be asked: {error}")
    except (ImportError, OSError) as error:
        fail(f"the proxy or the certificates (SSL_CERT_FILE) that the environment names cannot be used: {error}")


async def _ask(where: Where, method: str, path: str, **options: Any) -> Any:
    # Only who adds a tenant begins a store: of a mistyped one all else would say that all is well.
    async with _connected(where, makes_store=(method, path) == ("POST", "/admin/tenants")) as http:
        answer = await http.request(method, path, **options)
    try:
        content = answer.json()
        if not answer.is_success:
            fail(content["error"])
    except (ValueError, KeyError, TypeError):
        url = answer.url.copy_with(userinfo=b"")
        fail(f"{url} answered {answer.status_code} and not as Polyprefix does; is it the server's own URL?")
    return content


@asynccontextmanager
async def _connected(where: Where, makes_store: bool) -> AsyncIterator[httpx.AsyncClient]:
    if where.url is not None:
        headers = {} if where.api_key is None else {"authorization": f"Bearer {where.api_key}"}
        url = httpx.URL(where.url)
        options: dict[str, Any] = {
            "headers": headers,
            "timeout": SECONDS,
            "trust_env": not is_loopback(url.host),  # no proxy leads back here, nor may it see the key
            "verify": url.scheme == "https",
        }
        async with httpx.AsyncClient(base_url=where.url, **options) as http:
            yield http
        return
    place = place_of(where.store)
    if isinstance(place, Path) and not makes_store and not (place / REGISTRY).exists():
        fail(f"there is no store in {place.absolute()}; name one with --store")
    opened = open_store(place, where.registry)
    try:
        transport = httpx.ASGITransport(create_admin_app(opened, place))
        async with httpx.AsyncClient(base_url="http://store", transport=transport) as http:
            yield http
    finally:
        opened.close()


def tenant_path(name: str) -> str:
    return f"/admin/tenants/{quote(name, safe='')}"


def limits_of(given: list[str] | None) -> dict[str, int | None] | None:
    """`["max_tasks=5", "max_queued=none"]` as a JSON object; which names there are, the routes know."""
    if not given:
        return None
    pairs = [limit.partition("=") for limit in given]
    for name, _, number in pairs:
        if number != "none" and not (number.isdecimal() and len(number) < 20):
            raise typer.BadParameter(f"{name}={number}: expected NAME=NUMBER", param_hint="--limit")
    return {name: None if number == "none" else int(number) for name, _, number in pairs}


def given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def show(*objects: Any) -> None:
    for each in objects:
        typer.echo(json.dumps(each))


def fail(message: str) -> NoReturn:
    typer.secho(f"error: {message}", err=True, fg="red")
    raise typer.Exit(1)
