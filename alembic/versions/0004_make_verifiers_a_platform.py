"""Verifiers are archived, revoked, counted and backtested; keys bring some; feedback; what an adapter learnt from.

Revision 0004, after 0003. Everything has a default, so the release before runs on this schema.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# As they stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Verbatim = sa.JSON(none_as_null=True)
Indexed = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

ADDED = (
    ("verifiers", "archived_at"),
    ("verifiers", "revoked_at"),
    ("verifiers", "revoked_reason"),
    ("adapters", "verifiers"),
    ("adapters", "flags"),
    ("api_keys", "verifiers"),
)


def upgrade() -> None:
    op.add_column("verifiers", sa.Column("archived_at", sa.Double(), nullable=True))
    op.add_column("verifiers", sa.Column("revoked_at", sa.Double(), nullable=True))
    op.add_column("verifiers", sa.Column("revoked_reason", sa.Text(), nullable=False, server_default=""))
    op.add_column("adapters", sa.Column("verifiers", Indexed, nullable=False, server_default="[]"))
    op.add_column("adapters", sa.Column("flags", Indexed, nullable=False, server_default="[]"))
    op.add_column("api_keys", sa.Column("verifiers", Verbatim, nullable=False, server_default="[]"))
    op.create_table(
        "verdict_counts",
        sa.Column("verifier", Id, nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("total_ms", sa.Double(), nullable=False),
        sa.Column("slowest_ms", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("verifier", "hour", "status", "cause", name="pk_verdict_counts"),
    )
    op.create_table(
        "backtests",
        sa.Column("id", Id, nullable=False),
        sa.Column("verifier", Id, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("options", Indexed, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("leases", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("report", Verbatim, nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_backtests"),
    )
    op.create_index("ix_backtests_state", "backtests", ["state"])
    op.create_index("ix_backtests_verifier_id", "backtests", ["verifier", "id"])
    op.create_table(
        "feedback",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("source", Id, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("trains", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("episode_id", "source", name="pk_feedback"),
    )
    op.create_index("ix_feedback_passed_episode_id", "feedback", ["passed", "episode_id"])
    op.create_index("ix_events_subject_kind_id", "events", ["subject", "kind", "id"])


def downgrade() -> None:
    op.drop_index("ix_events_subject_kind_id", table_name="events")
    for table in ("feedback", "backtests", "verdict_counts"):
        op.drop_table(table)
    for table, column in ADDED:
        op.drop_column(table, column)
