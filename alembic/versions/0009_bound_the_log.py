"""The log has an age and users.

Revision 0009, after 0008. The release before runs on this schema: it names the same tables and columns.

On PostgreSQL the log's three tables become partitioned by month. Their key is the episode's id, which begins with the
millisecond that it was made in, so the primary keys stay what they were. What is there already is not copied: the old
tables become the first partition, for everything before the next month. So it takes one look at every row and no room.
The log's tables are locked meanwhile; servers that run keep their episodes in the spool.
"""

import sys
import time
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# As they stood at this revision, on purpose not imported from `server`.
KEYS = {"episodes": ("id",), "attempts": ("episode_id", "number"), "reflections": ("episode_id", "attempt")}
PARENT, *CHILDREN = KEYS
INDEXES = {
    "ix_episodes_failures": ("task", "split", "outcome", "created_at"),
    "ix_episodes_problem": ("task", "split", "problem", "id"),
    "ix_episodes_task_id": ("task", "id"),
    "ix_episodes_key_id": ("key", "id"),
    "ix_episodes_outcome_id": ("outcome", "id"),
    "ix_episodes_adapter_id": ("adapter", "id"),
}
PARTIAL_INDEXES = {
    "ix_episodes_askable_problem": ("task", "problem", "id"),
    "ix_episodes_askable_id": ("task", "id"),
}
ASKABLE = sa.text("split = 'held_out' AND store AND trains AND outcome IN ('passed', 'recovered', 'exhausted')")
USERS = ("user_hash", "safety_hash")
Id = sa.String().with_variant(sa.String(collation="C"), "postgresql")
Indexed = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
MONTHS_AHEAD = 3
MANY_ROWS = 50_000  # from here on it is told how far it is


def upgrade() -> None:
    add_partial_indexes()
    if op.get_context().dialect.name == "postgresql":
        partition_log()
    add_users()
    add_deletions()


def downgrade() -> None:
    op.drop_table("deletions")
    drop_users()
    if op.get_context().dialect.name == "postgresql":
        join_log()
    for name in PARTIAL_INDEXES:
        op.drop_index(name, table_name=PARENT)


def partition_log() -> None:
    """Make the log's tables partitioned by month, the rows that are there in the first partition."""
    run(f"LOCK TABLE {', '.join(KEYS)} IN ACCESS EXCLUSIVE MODE")
    there = bool(op.get_bind().scalar(sa.text(f"SELECT EXISTS (SELECT FROM {PARENT})")))
    months = list_months(MONTHS_AHEAD + 1)
    before = f"before_{months[1][0]}" if there else "empty"
    for table in KEYS:
        set_aside(table, before)
    for name, *bounds in months[1:] if there else months:
        add_partitions(name, f"FROM ('{bounds[0]}') TO ('{bounds[1]}')")
    add_partitions("default", None)
    if there:
        border = months[1][1]
        for table, (key, *_) in KEYS.items():  # made by a clock that was ahead
            run(f"INSERT INTO {table} SELECT * FROM {table}_{before} WHERE {key} >= '{border}'")
        run(f"DELETE FROM {PARENT}_{before} WHERE id >= '{border}'")
        for table in KEYS:
            tell(f"{table}_{before}", f"{table}: the rows that are there become the partition before {months[1][0]}")
            run(f"ALTER TABLE {table} ATTACH PARTITION {table}_{before} FOR VALUES FROM (MINVALUE) TO ('{border}')")
    else:
        run(f"DROP TABLE {', '.join(f'{table}_{before}' for table in reversed(KEYS))}")


def set_aside(table: str, before: str) -> None:
    """Rename a table and its indexes, and put a partitioned one without rows in its place."""
    old = f"{table}_{before}"
    run(f"ALTER TABLE {table} RENAME TO {old}")
    names = op.get_bind().scalars(sa.text("SELECT indexname FROM pg_indexes WHERE tablename = :old"), {"old": old})
    for name in names.all():
        run(f"ALTER INDEX {name} RENAME TO {name}_{before}")
    run(f"CREATE TABLE {table} (LIKE {old} INCLUDING DEFAULTS) PARTITION BY RANGE ({KEYS[table][0]})")
    add_indexes(table)


def add_indexes(table: str) -> None:
    """Add the primary key and the indexes that a table of the log has."""
    op.create_primary_key(f"pk_{table}", table, list(KEYS[table]))
    if table != PARENT:
        return
    for name, columns in INDEXES.items():
        op.create_index(name, table, list(columns))
    add_partial_indexes()


def add_partial_indexes() -> None:
    for name, columns in PARTIAL_INDEXES.items():
        op.create_index(name, PARENT, list(columns), postgresql_where=ASKABLE, sqlite_where=ASKABLE)


def add_partitions(name: str, bounds: str | None) -> None:
    """Add one partition to each table. Foreign keys are from partition to partition: one can go without the others."""
    for table in KEYS:
        values = f"FOR VALUES {bounds}" if bounds else "DEFAULT"
        run(f"CREATE TABLE {table}_{name} PARTITION OF {table} {values}")
        if table in CHILDREN:
            add_foreign_key(f"{table}_{name}", f"{PARENT}_{name}", table)


def add_foreign_key(source: str, target: str, table: str) -> None:
    op.create_foreign_key(f"fk_{table}_episode_id_{PARENT}", source, target, ["episode_id"], ["id"], ondelete="CASCADE")


def join_log() -> None:
    """Make the log's tables plain again, by copying every row; that takes as much room again."""
    run(f"LOCK TABLE {', '.join(KEYS)} IN ACCESS EXCLUSIVE MODE")
    for table in KEYS:
        tell(table, f"{table}: copying every row into a plain table")
        run(f"CREATE TABLE {table}_plain (LIKE {table} INCLUDING DEFAULTS)")
        run(f"INSERT INTO {table}_plain SELECT * FROM {table}")
    for table in reversed(KEYS):
        run(f"DROP TABLE {table} CASCADE")
    for table in KEYS:
        run(f"ALTER TABLE {table}_plain RENAME TO {table}")
        tell(table, f"{table}: its indexes")
        add_indexes(table)
        if table in CHILDREN:
            add_foreign_key(table, PARENT, table)


def add_users() -> None:
    """Add the hashes of whom requests name: NULL where a release wrote the row that knew no such columns."""
    for name in USERS:
        op.add_column(PARENT, sa.Column(name, sa.String(), nullable=True))
        said = sa.text(f"{name} <> ''")  # most requests name nobody, and cost no entry
        op.create_index(f"ix_{PARENT}_{name}_id", PARENT, [name, "id"], postgresql_where=said, sqlite_where=said)
        op.add_column("replays", sa.Column(name, sa.String(), nullable=True))


def drop_users() -> None:
    for name in USERS:
        op.drop_column("replays", name)
        op.drop_index(f"ix_{PARENT}_{name}_id", table_name=PARENT)
        op.drop_column(PARENT, name)


def add_deletions() -> None:
    """Add the tombstones of what was deleted."""
    op.create_table(
        "deletions",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("user_hash", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("episode", sa.String(), nullable=False),
        sa.Column("until_at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("report", Indexed, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_deletions"),
        sa.UniqueConstraint("id", name="uq_deletions_id"),
    )


def list_months(count: int) -> list[tuple[str, str, str]]:
    """List months from this one on: their names, and the ids that they begin and end with. UTC."""
    now = datetime.now(UTC)
    numbers = range(now.year * 12 + now.month - 1, now.year * 12 + now.month - 1 + count + 1)
    begins = [datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC) for number in numbers]
    ids = [f"ep_{int(begin.timestamp() * 1000):012x}" for begin in begins]
    return [(f"{begin:%Y_%m}", first, past) for begin, first, past in zip(begins[:-1], ids[:-1], ids[1:], strict=True)]


def tell(table: str, what: str) -> None:
    """Say on standard error what begins, where it will take its time."""
    counting = (
        "SELECT coalesce(sum(greatest(reltuples, 0)), 0) FROM pg_class WHERE relkind = 'r' AND relname LIKE :name"
    )
    rows = int(op.get_bind().scalar(sa.text(counting), {"name": f"{table}%".replace("_", r"\_")}))
    if rows >= MANY_ROWS:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what} (about {rows:,} rows)\n")


def run(statement: str) -> None:
    op.execute(sa.text(statement))
