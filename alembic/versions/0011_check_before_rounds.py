"""Adapters know what they were made for, rounds wait in pools, workers say that they live, and tasks have panels.

Revision 0011, after 0010. Only added to, so the release before runs on this schema.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# As it stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Verbatim = sa.JSON(none_as_null=True)
Indexed = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("adapters", sa.Column("fingerprints", Indexed, nullable=False, server_default="{}"))
    op.add_column("rounds", sa.Column("pool", sa.String(), nullable=False, server_default="default"))
    op.create_table("pools", sa.Column("name", Id, nullable=False), sa.PrimaryKeyConstraint("name", name="pk_pools"))
    op.create_table(
        "trainers",
        sa.Column("id", Id, nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column("preflight", Verbatim, nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_trainers"),
    )
    op.create_table(
        "panels",
        sa.Column("task", Id, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task", "version", name="pk_panels"),
    )
    op.create_table(
        "panel_problems",
        sa.Column("task", Id, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("episode_id", Id, nullable=False),
        sa.Column("problem", sa.String(), nullable=False),
        sa.Column("pins", Indexed, nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("content", Verbatim),
        sa.PrimaryKeyConstraint("task", "version", "number", name="pk_panel_problems"),
        sa.ForeignKeyConstraint(
            ["task", "version"],
            ["panels.task", "panels.version"],
            name="fk_panel_problems_task_panels",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_panel_problems_episode_id", "panel_problems", ["episode_id"])
    op.create_table(
        "panel_results",
        sa.Column("task", Id, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("adapter", Id, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("conditions", sa.String(), nullable=False),
        sa.Column("judged", sa.Boolean(), nullable=False),
        sa.Column("first_passed", sa.Boolean(), nullable=False),
        sa.Column("second_passed", sa.Boolean(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task", "version", "adapter", "number", name="pk_panel_results"),
        sa.ForeignKeyConstraint(
            ["task", "version", "number"],
            ["panel_problems.task", "panel_problems.version", "panel_problems.number"],
            name="fk_panel_results_task_panel_problems",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    op.drop_table("panel_results")
    op.drop_index("ix_panel_problems_episode_id", table_name="panel_problems")
    op.drop_table("panel_problems")
    op.drop_table("panels")
    op.drop_table("trainers")
    op.drop_table("pools")
    op.drop_column("rounds", "pool")
    op.drop_column("adapters", "fingerprints")
