"""Gates keep what both adapters made of each held-out problem.

Revision 0007, after 0006. Only added to, so the release before runs on this schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# As it stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "gate_pairs",
        sa.Column("round_id", Id, nullable=False),
        sa.Column("place", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("change", sa.String(), nullable=False),
        sa.Column("samples_before", sa.Integer(), nullable=False),
        sa.Column("samples_after", sa.Integer(), nullable=False),
        sa.Column("first_before", sa.Double(), nullable=False),
        sa.Column("first_after", sa.Double(), nullable=False),
        sa.Column("second_before", sa.Double(), nullable=False),
        sa.Column("second_after", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["rounds.id"], name="fk_gate_pairs_round_id_rounds", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("round_id", "place", name="pk_gate_pairs"),
    )


def downgrade() -> None:
    op.drop_table("gate_pairs")
