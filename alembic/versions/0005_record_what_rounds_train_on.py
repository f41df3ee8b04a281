"""Rounds record the episodes that they train on, and episodes are found by the adapter that served them.

Revision 0005, after 0004. Only added to, so the release before runs on this schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# As it stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "round_episodes",
        sa.Column("round_id", Id, nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name="fk_round_episodes_round_id_rounds", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("round_id", "episode_id", name="pk_round_episodes"),
    )
    op.create_index("ix_round_episodes_episode_id", "round_episodes", ["episode_id"])
    op.create_index("ix_episodes_adapter_id", "episodes", ["adapter", "id"])


def downgrade() -> None:
    op.drop_index("ix_episodes_adapter_id", table_name="episodes")
    op.drop_table("round_episodes")
