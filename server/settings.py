"""What an operator can set: command-line options and `POLYPREFIX_…` environment variables, with their defaults.

The only place that reads the environment. Knows nothing of what the settings are used for.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ByteSize, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from prefix_store.home import place_of

PREFIX = "POLYPREFIX_"
OF_CLIENTS = {"POLYPREFIX_URL", "POLYPREFIX_API_KEY"}
Positive = Annotated[int, Field(gt=0)]
NumBytes = Annotated[ByteSize, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Times are in seconds, sizes in bytes or with a unit, `4GiB` say. An argument wins over the environment, the
    environment over the default; an empty variable is none."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    model: str | None = None
    """A directory or a hub id; None is the model that ships with the package."""
    store: Annotated[Path | str, BeforeValidator(place_of)] = Path("store")
    """A directory, or a bucket that several servers share: `s3://bucket/path`, `gs://…`, `az://…`."""
    registry: str | None = None
    """The URL of the PostgreSQL database that goes with a bucket; None is an SQLite file in the directory."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    no_auth: bool = False
    """Serve everyone who reaches an address that is not this machine's own, while there are no keys."""
    first_key_file: Path | None = None
    """Where there is no key yet, make one that opens everything, and write it into this new file."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """A port of its own for the metrics, open to whoever reaches it."""
    metrics_by_tenant: bool = False
    """Count tokens and waiting requests by tenant too: a few series for each."""
    metrics_max_tasks: Annotated[int, Field(ge=0)] = 0
    """Count rows and tokens by task too: the first so many that run have a label each, all others share one."""
    allowed_hosts: str = ""
    """The names, separated by commas, by which the server may be asked; empty is any."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    deterministic: bool = False
    """Answer a request with the same bits whatever runs beside it, at the price of products of one fixed shape."""
    max_num_seqs: Positive | None = None
    """Rows of one batch; None is what fits in memory, at most 64."""
    max_model_len: Positive | None = None
    prefix_cache_bytes: NumBytes = ByteSize(1 << 30)

    max_json_bytes: NumBytes = ByteSize(256 << 10)
    max_upload_bytes: NumBytes = ByteSize(64 << 20)
    max_open_upload_bytes: NumBytes = ByteSize(256 << 20)
    """Of all files that are uploaded or read back; a single tenant's may have half of it. While one that comes is read
    and compiled it takes up to four times its size."""
    max_prompt_bytes: NumBytes = ByteSize(32 << 10)
    max_queued_per_slot: Positive = 4

    queue_timeout: Seconds = 30.0
    request_timeout: Seconds = 120.0
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 60.0
    engine_stall_timeout: Seconds = 30.0
    reader_stall_timeout: Seconds = 30.0
    keep_alive_interval: Seconds = 15.0
    idle_timeout: Seconds = 75.0
    """For how long a connection without a request is kept. A balancer that keeps its own for longer (most do for 60)
    may send a request on one that is being closed."""
    drain_notice: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0

    @property
    def host_names(self) -> frozenset[str]:
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())


def unknown_variables() -> list[str]:
    """What the environment has that looks like a setting and is none: mistyped, or of another version."""
    known = OF_CLIENTS | {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
