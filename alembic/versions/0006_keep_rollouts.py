"""Rollouts are kept before they are trained on.

Revision 0006, after 0005. Only added to, so the release before runs on this schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# As it stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("round_id", Id, nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("group_number", sa.Integer(), nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("prompt_ids", sa.LargeBinary(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("retry", sa.JSON(), nullable=True),
        sa.Column("adapter", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("logged", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name="fk_rollouts_round_id_rounds", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("round_id", "step", "number", name="pk_rollouts"),
    )
    op.create_index("ix_rollouts_episode_id", "rollouts", ["episode_id"])
    op.create_index("ix_rollouts_created_at", "rollouts", ["created_at"])


def downgrade() -> None:
    op.drop_table("rollouts")
