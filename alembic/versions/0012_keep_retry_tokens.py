"""Rollouts keep the tokens of a retry and of the first prompt, for rounds that distil retries into first answers.

Revision 0012, after 0011. Only added to, so the release before runs on this schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("first_prompt_ids", sa.LargeBinary()))
    op.add_column("rollouts", sa.Column("retry_ids", sa.LargeBinary()))


def downgrade() -> None:
    op.drop_column("rollouts", "retry_ids")
    op.drop_column("rollouts", "first_prompt_ids")
