"""Run by alembic for each upgrade: hands it the connection that `upgrade` put into the configuration."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
