"""A share of traffic may try a candidate, and what a human decides about an adapter is kept with it.

Revision 0008, after 0007. Only added to, so the release before runs on this schema: to it there is no canary, and every
request of a task goes to the champion.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# As it stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Indexed = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
OPEN_CANARY = sa.text("state = 'running'")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("canary", sa.String(), nullable=False, server_default=""))
    op.add_column("tasks", sa.Column("canary_share", sa.Double(), nullable=False, server_default="0"))
    op.add_column("adapters", sa.Column("decided_by", sa.String(), nullable=False, server_default=""))
    op.add_column("adapters", sa.Column("comment", sa.Text(), nullable=False, server_default=""))
    op.add_column("episodes", sa.Column("conversation", sa.String()))
    op.create_table(
        "canaries",
        sa.Column("id", Id, nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("adapter", Id, nullable=False),
        sa.Column("champion", sa.String(), nullable=False),
        sa.Column("policy", Indexed, nullable=False),
        sa.Column("steps", Indexed, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("baseline", Indexed, nullable=False),
        sa.Column("report", Indexed, nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_canaries"),
    )
    op.create_index(
        "uq_canaries_open", "canaries", ["task"], unique=True, postgresql_where=OPEN_CANARY, sqlite_where=OPEN_CANARY
    )
    op.create_index("ix_canaries_task_id", "canaries", ["task", "id"])
    op.create_index("ix_canaries_adapter", "canaries", ["adapter"])


def downgrade() -> None:
    op.drop_table("canaries")
    op.drop_column("episodes", "conversation")
    op.drop_column("adapters", "comment")
    op.drop_column("adapters", "decided_by")
    op.drop_column("tasks", "canary_share")
    op.drop_column("tasks", "canary")
