"""Gives keys roles, task lists, limits and an end; verifiers an owner; tasks a word on unknown fields.

Revision 0002, after 0001.
"""

import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# As they stood at this revision, on purpose not imported from `server`.
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Indexed = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")

api_keys = sa.table(
    "api_keys",
    sa.column("id", sa.String()),
    sa.column("role", sa.String()),
    sa.column("scopes", Indexed),
    sa.column("tasks", Indexed),
    sa.column("limits", Indexed),
    sa.column("trains", sa.Boolean()),
    sa.column("expires_at", sa.Double()),
    sa.column("revoked_at", sa.Double()),
)

LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent", "token_budget")
VERIFIER_SCOPES = ["inline_verifiers", "register_verifiers", "register_code"]


def upgrade() -> None:
    op.add_column("tasks", sa.Column("unknown_fields", sa.String(), nullable=False, server_default="refuse"))
    op.add_column("verifiers", sa.Column("owner", sa.String(), nullable=False, server_default=""))
    op.add_column("episodes", sa.Column("trains", sa.Boolean(), nullable=False, server_default=sa.true()))
    for column in (
        sa.Column("role", sa.String(), nullable=False, server_default="client"),
        sa.Column("tasks", Indexed, nullable=False, server_default="[]"),
        sa.Column("limits", Indexed, nullable=False, server_default="{}"),
        sa.Column("trains", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
    ):
        op.add_column("api_keys", column)
    op.create_table(
        "key_usage",
        sa.Column("key", Id, nullable=False),
        sa.Column("requests", Indexed, nullable=False),
        sa.Column("tokens", Indexed, nullable=False),
        sa.Column("slots", Indexed, nullable=False),
        sa.Column("period", sa.String(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_key_usage"),
    )
    for key in read_keys("id", "scopes", "revoked_at"):
        role, scopes = give_role(key["scopes"])
        # One without any scope could do nothing, and there is no role for that: it ends here.
        ends = key["revoked_at"] is None and not key["scopes"]
        change_key(key["id"], role=role, scopes=scopes, revoked_at=time.time() if ends else key["revoked_at"])


def downgrade() -> None:
    for key in read_keys("id", "role", "scopes", "tasks", "limits", "trains", "expires_at", "revoked_at"):
        # The old schema would let this key do more than it may: it ends here.
        ends = key["revoked_at"] is None and not fits_old_schema(key)
        change_key(key["id"], scopes=take_role(key), revoked_at=time.time() if ends else key["revoked_at"])
    op.drop_table("key_usage")
    for column in ("last_used_at", "expires_at", "trains", "limits", "tasks", "role"):
        op.drop_column("api_keys", column)
    op.drop_column("episodes", "trains")
    op.drop_column("verifiers", "owner")
    op.drop_column("tasks", "unknown_fields")


def give_role(old: list[str]) -> tuple[str, list[str]]:
    """Turn the scopes of revision 0001 into a role and scopes."""
    if "admin" in old:
        return "admin", []
    if "verifiers" in old:
        return "client", VERIFIER_SCOPES
    return "client", ["inline_verifiers"] if "inference" in old else []


def take_role(key: dict[str, Any]) -> list[str]:
    """Turn a role and scopes into the scopes of revision 0001; viewers and approvers have nothing there."""
    if key["role"] == "admin":
        return ["admin"]
    if key["role"] != "client":
        return []
    return ["inference", *(["verifiers"] if {"register_verifiers", "register_code"} <= set(key["scopes"]) else [])]


def fits_old_schema(key: dict[str, Any]) -> bool:
    """Say whether revision 0001 holds a key back as much as this one does."""
    limited = any(key["limits"].get(name) is not None for name in LIMITS)
    if key["tasks"] or limited or key["expires_at"] is not None or not key["trains"]:
        return False
    return key["role"] != "client" or "inline_verifiers" in key["scopes"]


def read_keys(*names: str) -> Iterator[dict[str, Any]]:
    """Read the keys, all at once: they are changed while one goes through them."""
    rows = op.get_bind().execute(sa.select(*(api_keys.c[name] for name in names))).all()
    return (dict(zip(names, row, strict=True)) for row in rows)


def change_key(key_id: str, **values: Any) -> None:
    """Change one key."""
    op.get_bind().execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(**values))
