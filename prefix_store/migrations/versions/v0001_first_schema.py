"""Tasks, their versions, tenants, keys and usage."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# In the order of their characters, as SQLite has them, whatever language the database speaks.
_TASK_ID = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
_NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tasks",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("task_id", _TASK_ID, primary_key=True),
        sa.Column("served_version", sa.Integer, nullable=False),
        sa.Column("num_versions", sa.Integer, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
    )
    only_public = sa.text("public = true") if op.get_bind().dialect.name == "postgresql" else sa.text("public = 1")
    op.create_index(
        "public_tasks", "tasks", ["task_id"], unique=True, sqlite_where=only_public, postgresql_where=only_public
    )
    op.create_table(
        "versions",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("task_id", _TASK_ID, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("native_sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("num_virtual_tokens", sa.Integer, nullable=False),
        sa.Column("num_bytes", sa.BigInteger, nullable=False),
        sa.Column("num_native_bytes", sa.BigInteger, nullable=False),
        sa.Column("backbone", sa.String(64), nullable=False),
        sa.Column("backbone_checked", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("quarantined", sa.Text),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["tenant", "task_id"], ["tasks.tenant", "tasks.task_id"]),
    )
    op.create_index("versions_by_sha256", "versions", ["tenant", "sha256"])
    op.create_index("versions_by_native_sha256", "versions", ["tenant", "native_sha256"])
    op.create_table(
        "tenants",
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("weight", sa.Float(53), nullable=False),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(8), primary_key=True),
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.name"), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at", sa.Text),
        sa.Column("revoked_at", sa.Text),
        sa.Column("last_used_at", sa.Text),
        sa.Column("checksum", sa.String(64), nullable=False),
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])
    op.create_table(
        "usage",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("task_id", _NAME, primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("generated_tokens", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Float(53), nullable=False),
    )
    op.create_table(
        "usage_flushes",
        sa.Column("ledger", sa.String(32), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
