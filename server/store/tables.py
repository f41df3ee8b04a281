"""Every table of the database, for SQLite and PostgreSQL alike.

Owns the schema; the stores beside it and the migrations read it. It must never hold queries. Whatever changes here
needs a migration: a test compares the two.

JSON comes in two kinds. `Verbatim` keeps the text as it was written (PostgreSQL's `json`): the order of keys in a
tool's schema is part of the prompt that the model saw, and JSONB would sort them. `Indexed` is JSONB, for the rest.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Compared byte by byte on both dialects: ids sort by the time they were made, whatever the server's locale.
Id = String().with_variant(String(collation="C"), "postgresql")
Name = String()
Verbatim = JSON(none_as_null=True)
Indexed = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Seconds = Double()

OPEN_ROUND = text("state IN ('queued', 'running')")

tasks = Table(
    "tasks",
    metadata,
    Column("name", Id, primary_key=True),
    Column("verifiers", Verbatim, nullable=False),
    Column("verify", Name, nullable=False),
    Column("retry", Indexed, nullable=False),
    Column("training", Indexed, nullable=False),
    Column("prompts", Verbatim, nullable=False),
    Column("unknown_fields", Name, nullable=False, server_default="refuse"),
    Column("champion", Name, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_at", Seconds, nullable=False),
)

verifiers = Table(
    "verifiers",
    metadata,
    Column("name", Id, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("kind", Name, nullable=False),
    Column("config", Verbatim, nullable=False),
    Column("description", Text, nullable=False),
    Column("owner", Name, nullable=False, server_default=""),  # the id of the key that registered the name
    Column("created_at", Seconds, nullable=False),
)

episodes = Table(
    "episodes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("task", Name, nullable=False),  # no foreign key: the log never refuses an answer that was given
    Column("model", Name, nullable=False),
    Column("base_model", Name, nullable=False),
    Column("adapter", Name, nullable=False),
    Column("key", Name, nullable=False),
    Column("request", Verbatim),  # NULL where `store: false` kept it out
    Column("bindings", Verbatim, nullable=False),  # the verifiers with the request's arguments
    Column("verify", Name, nullable=False),
    Column("retry", Indexed, nullable=False),
    Column("prompts", Verbatim, nullable=False),
    Column("store", Boolean, nullable=False),
    Column("outcome", Name, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", Seconds, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("split", Name, nullable=False),
    Column("problem", Name, nullable=False),  # a hash of what was asked, "" where it may not be kept
    Column("trains", Boolean, nullable=False, server_default=true()),  # false: no round may select it
    Index("ix_episodes_failures", "task", "split", "outcome", "created_at"),
    Index("ix_episodes_problem", "task", "split", "problem", "id"),
    Index("ix_episodes_task_id", "task", "id"),
    Index("ix_episodes_key_id", "key", "id"),
    Index("ix_episodes_outcome_id", "outcome", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("episode_id", Id, ForeignKey("episodes.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("answer", Verbatim, nullable=False),
    Column("finish_reason", Name, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("status", Name, nullable=False),  # the verdict of all bindings together
    Column("score", Double, nullable=False),
    Column("reason", Text, nullable=False),
    Column("verdicts", Verbatim, nullable=False),
    Column("sampling", Verbatim, nullable=False),
    Column("adapter", Name, nullable=False),  # the episode's, so that accuracy by adapter needs no join
    Column("started_at", Seconds, nullable=False),
    Column("engine_ms", Double, nullable=False),
    Column("verify_ms", Double, nullable=False),
    Column("logprobs", Verbatim),
)

reflections = Table(
    "reflections",
    metadata,
    Column("episode_id", Id, ForeignKey("episodes.id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("prompt_ids", LargeBinary, nullable=False),  # int32, little endian
    Column("token_ids", LargeBinary, nullable=False),  # int32, little endian
    Column("logprobs", LargeBinary, nullable=False),  # float32, little endian
    Column("adapter", Name, nullable=False),
    Column("template_hash", Name, nullable=False),
    Column("sampling", Verbatim, nullable=False),
    Column("finish_reason", Name, nullable=False),
    Column("started_at", Seconds, nullable=False),
    Column("engine_ms", Double, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("name", Id, primary_key=True),
    Column("task", Name, nullable=False, index=True),
    Column("path", Text, nullable=False),
    Column("files", Indexed, nullable=False),  # file name -> SHA-256
    Column("status", Name, nullable=False),
    Column("round_id", Id, nullable=False),
    Column("parent", Name, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("created_at", Seconds, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("id", Id, primary_key=True),
    Column("task", Name, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Name, nullable=False),
    Column("phase", Name, nullable=False),
    Column("reason", Text, nullable=False),
    Column("options", Indexed, nullable=False),
    Column("adapter", Name, nullable=False),
    Column("parent", Name, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("leases", Integer, nullable=False),  # how many workers have taken it so far
    Column("owner", Name, nullable=False),
    Column("heartbeat_at", Seconds, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("report", Indexed, nullable=False),
    Column("steps_done", Integer, nullable=False),
    Column("steps_total", Integer, nullable=False),
    Column("created_at", Seconds, nullable=False),
    Column("started_at", Seconds, nullable=False),
    Column("ended_at", Seconds, nullable=False),
    UniqueConstraint("task", "number"),
    # At most one round of a task is queued or running; the database holds this, not our code.
    Index("uq_rounds_open", "task", unique=True, postgresql_where=OPEN_ROUND, sqlite_where=OPEN_ROUND),
    Index("ix_rounds_state", "state"),
)

steps = Table(
    "steps",
    metadata,
    Column("round_id", Id, ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),  # the lease that it was made under
    Column("metrics", Indexed, nullable=False),
    Column("created_at", Seconds, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("sha256", Name, nullable=False, unique=True),
    Column("role", Name, nullable=False, server_default="client"),
    Column("scopes", Indexed, nullable=False),
    Column("tasks", Indexed, nullable=False, server_default="[]"),
    Column("limits", Indexed, nullable=False, server_default="{}"),
    Column("trains", Boolean, nullable=False, server_default=true()),
    Column("created_at", Seconds, nullable=False),
    Column("expires_at", Seconds),
    Column("revoked_at", Seconds),
    Column("last_used_at", Seconds),
)

# One row a limited key: what all processes together have used of it. Its lock is what makes the limits strict.
key_usage = Table(
    "key_usage",
    metadata,
    Column("key", Id, primary_key=True),
    Column("requests", Indexed, nullable=False),  # [[second, how many], ...]: the last minute's
    Column("tokens", Indexed, nullable=False),  # likewise
    Column("slots", Indexed, nullable=False),  # process -> [how many it holds, when it was seen last]
    Column("period", Name, nullable=False),  # the budget's: "2026-11-21", "2026-11" or ""
    Column("spent", BigInteger, nullable=False),  # tokens, in that period
)

# The answers of requests that were sent with an idempotency key; without a status it still runs.
replays = Table(
    "replays",
    metadata,
    Column("key", Id, primary_key=True),  # the id of the API key
    Column("name", Id, primary_key=True),  # the idempotency key
    Column("request_sha256", Name, nullable=False),
    Column("owner", Name, nullable=False),  # who holds it while it runs
    Column("claimed_at", Seconds, nullable=False),
    Column("expires_at", Seconds, nullable=False, index=True),
    Column("status", Integer),
    Column("headers", Indexed),
    Column("body", LargeBinary),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Name, nullable=False),
    Column("subject", Name, nullable=False),
    Column("actor", Name, nullable=False),
    Column("details", Indexed, nullable=False),
    Column("created_at", Seconds, nullable=False),
)

presence = Table(
    "presence",
    metadata,
    Column("id", Id, primary_key=True),
    Column("acknowledged", Indexed, nullable=False),  # task -> champion generation that new episodes use
    Column("in_flight", Indexed, nullable=False),  # adapter -> episodes
    Column("seen_at", Seconds, nullable=False),
)
