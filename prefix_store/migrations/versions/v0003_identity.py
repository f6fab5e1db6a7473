"""What a bucket knows its registry by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table("identity", sa.Column("id", sa.String(32), primary_key=True))
