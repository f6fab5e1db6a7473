"""Brings a database to the newest schema: `versions/` holds one file per step, each of which knows the one before.

Knows alembic. The steps run in the caller's transaction, so that a killed process leaves the old schema or the new one.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from prefix_store.errors import SchemaTooNew

_HERE = Path(__file__).parent
_POSTGRESQL_LOCK = 0x706F6C79  # one process migrates while others that start wait


def upgrade(connection: Connection) -> None:
    """Make or change the tables where needed, in the transaction that `connection` is in.

    Raises `SchemaTooNew` for a database that a newer release wrote.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _POSTGRESQL_LOCK})
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    found = MigrationContext.configure(connection).get_current_revision()
    steps = [step.revision for step in ScriptDirectory.from_config(config).walk_revisions()]
    if found is not None and found not in steps:
        raise SchemaTooNew(found, newest=steps[0])
    if found != steps[0]:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
