"""Several engines may serve one base model: what each API process sees of them, and who moves an adapter now.

Revision 0010, after 0009. Only added to, so the release before runs on this schema: it reports no engines, and so holds
no promotion up.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


# As it stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Indexed = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("presence", sa.Column("replicas", Indexed, nullable=False, server_default="{}"))
    op.create_table(
        "adapter_holds",
        sa.Column("adapter", Id, nullable=False),
        sa.Column("held_until", sa.Double(), nullable=False),
        sa.Column("unloading_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("adapter", name="pk_adapter_holds"),
    )


def downgrade() -> None:
    op.drop_table("adapter_holds")
    op.drop_column("presence", "replicas")
