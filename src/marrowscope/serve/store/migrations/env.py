"""What Alembic runs: the migrations, over the connection that `Database.migrate` gives."""

from __future__ import annotations

from alembic import context

from marrowscope.serve.store.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
context.run_migrations()
