"""Builds every table.

Revision 0001, the first.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# As they stood at this revision, on purpose not imported from `server.store.tables`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Verbatim = sa.JSON(none_as_null=True)
Indexed = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
OPEN_ROUND = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", Id, nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("files", Indexed, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("round_id", Id, nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_adapters"),
    )
    op.create_index("ix_adapters_task", "adapters", ["task"])

    op.create_table(
        "api_keys",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("scopes", Indexed, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("sha256", name="uq_api_keys_sha256"),
    )
    op.create_table(
        "episodes",
        sa.Column("id", Id, nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("request", Verbatim, nullable=True),
        sa.Column("bindings", Verbatim, nullable=False),
        sa.Column("verify", sa.String(), nullable=False),
        sa.Column("retry", Indexed, nullable=False),
        sa.Column("prompts", Verbatim, nullable=False),
        sa.Column("store", sa.Boolean(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("problem", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_episodes"),
    )
    op.create_index("ix_episodes_failures", "episodes", ["task", "split", "outcome", "created_at"])
    op.create_index("ix_episodes_key_id", "episodes", ["key", "id"])
    op.create_index("ix_episodes_outcome_id", "episodes", ["outcome", "id"])
    op.create_index("ix_episodes_problem", "episodes", ["task", "split", "problem", "id"])
    op.create_index("ix_episodes_task_id", "episodes", ["task", "id"])

    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("details", Indexed, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_table(
        "presence",
        sa.Column("id", Id, nullable=False),
        sa.Column("acknowledged", Indexed, nullable=False),
        sa.Column("in_flight", Indexed, nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_presence"),
    )
    op.create_table(
        "rounds",
        sa.Column("id", Id, nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("options", Indexed, nullable=False),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("parent", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("leases", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("report", Indexed, nullable=False),
        sa.Column("steps_done", sa.Integer(), nullable=False),
        sa.Column("steps_total", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rounds"),
        sa.UniqueConstraint("task", "number", name="uq_rounds_task_number"),
    )
    op.create_index("ix_rounds_state", "rounds", ["state"])
    op.create_index(
        "uq_rounds_open", "rounds", ["task"], unique=True, postgresql_where=OPEN_ROUND, sqlite_where=OPEN_ROUND
    )

    op.create_table(
        "tasks",
        sa.Column("name", Id, nullable=False),
        sa.Column("verifiers", Verbatim, nullable=False),
        sa.Column("verify", sa.String(), nullable=False),
        sa.Column("retry", Indexed, nullable=False),
        sa.Column("training", Indexed, nullable=False),
        sa.Column("prompts", Verbatim, nullable=False),
        sa.Column("champion", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tasks"),
    )
    op.create_table(
        "verifiers",
        sa.Column("name", Id, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("config", Verbatim, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", name="pk_verifiers"),
    )
    op.create_table(
        "attempts",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("answer", Verbatim, nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("verdicts", Verbatim, nullable=False),
        sa.Column("sampling", Verbatim, nullable=False),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("engine_ms", sa.Double(), nullable=False),
        sa.Column("verify_ms", sa.Double(), nullable=False),
        sa.Column("logprobs", Verbatim, nullable=True),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episodes.id"], name="fk_attempts_episode_id_episodes", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("episode_id", "number", name="pk_attempts"),
    )
    op.create_table(
        "reflections",
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("prompt_ids", sa.LargeBinary(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("template_hash", sa.String(), nullable=False),
        sa.Column("sampling", Verbatim, nullable=False),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("engine_ms", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["episode_id"], ["episodes.id"], name="fk_reflections_episode_id_episodes", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("episode_id", "attempt", name="pk_reflections"),
    )
    op.create_table(
        "steps",
        sa.Column("round_id", Id, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("metrics", Indexed, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name="fk_steps_round_id_rounds", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("round_id", "number", name="pk_steps"),
    )


def downgrade() -> None:
    for table in (
        "steps",
        "reflections",
        "attempts",
        "verifiers",
        "tasks",
        "rounds",
        "presence",
        "events",
        "episodes",
        "api_keys",
        "adapters",
    ):
        op.drop_table(table)
