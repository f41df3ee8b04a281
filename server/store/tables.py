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
    ForeignKeyConstraint,
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

NAMES_USER, NAMES_SAFETY = text("user_hash <> ''"), text("safety_hash <> ''")
OPEN_ROUND = text("state IN ('queued', 'running')")
# Literally so in queries too, or neither database sees that the indexes with this condition serve them.
ASKABLE = text("split = 'held_out' AND store AND trains AND outcome IN ('passed', 'recovered', 'exhausted')")
OPEN_CANARY = text("state = 'running'")

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
    Column("canary", Name, nullable=False, server_default=""),  # the adapter on trial, if any
    Column("canary_share", Double, nullable=False, server_default="0"),  # of the task's conversations
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
    Column("archived_at", Seconds),
    Column("revoked_at", Seconds),
    Column("revoked_reason", Text, nullable=False, server_default=""),
)

# How often each version said what, by the hour: every process adds what it counted.
verdict_counts = Table(
    "verdict_counts",
    metadata,
    Column("verifier", Id, primary_key=True),  # the pin
    Column("hour", Integer, primary_key=True, autoincrement=False),  # since the Unix epoch
    Column("status", Name, primary_key=True),
    Column("cause", Name, primary_key=True),  # "" but for abstentions
    Column("count", BigInteger, nullable=False),
    Column("total_ms", Double, nullable=False),
    Column("slowest_ms", Double, nullable=False),
)

backtests = Table(
    "backtests",
    metadata,
    Column("id", Id, primary_key=True),
    Column("verifier", Id, nullable=False),
    Column("version", Integer, nullable=False),
    Column("key", Name, nullable=False),
    Column("options", Indexed, nullable=False),
    Column("state", Name, nullable=False, index=True),
    Column("leases", Integer, nullable=False),  # how many processes have begun it
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("report", Verbatim, nullable=False),
    Column("error", Text, nullable=False),
    Column("owner", Name, nullable=False),
    Column("heartbeat_at", Seconds, nullable=False),
    Column("created_at", Seconds, nullable=False),
    Column("ended_at", Seconds, nullable=False),
    Index("ix_backtests_verifier_id", "verifier", "id"),
)

# The log. On PostgreSQL it is partitioned by month, which ids begin with (see `partitions`); there the foreign keys to
# `episodes.id` are from partition to partition.
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
    # Hashes of the request's `user` and `safety_identifier`; "" for none, NULL of a release that kept no hashes.
    Column("user_hash", Name),
    Column("safety_hash", Name),
    Column("conversation", Name),  # while a canary runs: what was drawn for it; "" or NULL: it had no part in that
    Index("ix_episodes_failures", "task", "split", "outcome", "created_at"),
    Index("ix_episodes_problem", "task", "split", "problem", "id"),
    # What a gate may ask again, by problem and newest first: a share of the log, so these two are small.
    Index("ix_episodes_askable_problem", "task", "problem", "id", postgresql_where=ASKABLE, sqlite_where=ASKABLE),
    Index("ix_episodes_askable_id", "task", "id", postgresql_where=ASKABLE, sqlite_where=ASKABLE),
    Index("ix_episodes_task_id", "task", "id"),
    Index("ix_episodes_key_id", "key", "id"),
    Index("ix_episodes_outcome_id", "outcome", "id"),
    Index("ix_episodes_adapter_id", "adapter", "id"),
    Index("ix_episodes_user_hash_id", "user_hash", "id", postgresql_where=NAMES_USER, sqlite_where=NAMES_USER),
    Index("ix_episodes_safety_hash_id", "safety_hash", "id", postgresql_where=NAMES_SAFETY, sqlite_where=NAMES_SAFETY),
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

# No foreign key: the log is partitioned. Feedback comes once its episode is there, and goes with it.
feedback = Table(
    "feedback",
    metadata,
    Column("episode_id", Id, primary_key=True),
    Column("source", Id, primary_key=True),
    Column("key", Name, nullable=False),
    Column("passed", Boolean, nullable=False),
    Column("score", Double),
    Column("comment", Text, nullable=False),
    Column("trains", Boolean, nullable=False),
    Column("created_at", Seconds, nullable=False),
    Index("ix_feedback_passed_episode_id", "passed", "episode_id"),
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
    Column("verifiers", Indexed, nullable=False, server_default="[]"),  # the pins that it was trained on
    Column("flags", Indexed, nullable=False, server_default="[]"),
    Column("fingerprints", Indexed, nullable=False, server_default="{}"),  # what it was made for, by name
    Column("decided_by", Name, nullable=False, server_default=""),  # whose hand moved it last
    Column("comment", Text, nullable=False, server_default=""),
)

canaries = Table(
    "canaries",
    metadata,
    Column("id", Id, primary_key=True),
    Column("task", Name, nullable=False),
    Column("adapter", Id, nullable=False, index=True),
    Column("champion", Name, nullable=False),  # what it is compared with
    Column("policy", Indexed, nullable=False),
    Column("steps", Indexed, nullable=False),  # [{share, since}, ...]
    Column("generation", Integer, nullable=False),  # the task's, since its last move
    Column("state", Name, nullable=False),
    Column("reason", Text, nullable=False),
    Column("baseline", Indexed, nullable=False),
    Column("report", Indexed, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("started_at", Seconds, nullable=False),
    Column("ended_at", Seconds, nullable=False),
    # At most one canary of a task runs; the database holds this, not our code.
    Index("uq_canaries_open", "task", unique=True, postgresql_where=OPEN_CANARY, sqlite_where=OPEN_CANARY),
    Index("ix_canaries_task_id", "task", "id"),
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
    Column("pool", Name, nullable=False, server_default="default"),  # whose workers train it
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

# What a step sampled, kept before the optimiser uses it. Of a group only the first member holds the prompt's ids.
rollouts = Table(
    "rollouts",
    metadata,
    Column("round_id", Id, ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),  # the order in the step, from 0
    Column("epoch", Integer, nullable=False),  # the lease that sampled or took it over
    Column("group_number", Integer, nullable=False),
    Column("episode_id", Id, nullable=False, index=True),
    Column("prompt_ids", LargeBinary, nullable=False),  # int32, little endian
    Column("token_ids", LargeBinary, nullable=False),  # int32, little endian
    Column("logprobs", LargeBinary, nullable=False),  # float32, little endian
    Column("reward", Double),
    Column("verdict", Name, nullable=False),
    Column("retry", Verbatim),
    Column("adapter", Name, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("logged", Boolean, nullable=False),
    # int32 as above; NULL: the round does not distil retries into first answers
    Column("first_prompt_ids", LargeBinary),
    Column("retry_ids", LargeBinary),
    Column("created_at", Seconds, nullable=False, index=True),
)

# What a round sampled reflections on. No foreign key to the episode: that it was used outlives its content.
round_episodes = Table(
    "round_episodes",
    metadata,
    Column("round_id", Id, ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
    Column("episode_id", Id, primary_key=True, index=True),
    Column("step", Integer, nullable=False),  # the first that used it
    Column("epoch", Integer, nullable=False),  # the lease that it was used under
)

# What both adapters of a round's gate made of each held-out problem, as shares of the samples that were judged.
gate_pairs = Table(
    "gate_pairs",
    metadata,
    Column("round_id", Id, ForeignKey("rounds.id", ondelete="CASCADE"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),  # in the order in which they were asked
    Column("episode_id", Id, nullable=False),  # no foreign key, as above
    Column("change", Name, nullable=False),  # fixed, broken or same
    Column("samples_before", Integer, nullable=False),
    Column("samples_after", Integer, nullable=False),
    Column("first_before", Double, nullable=False),
    Column("first_after", Double, nullable=False),
    Column("second_before", Double, nullable=False),
    Column("second_after", Double, nullable=False),
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
    Column("verifiers", Verbatim, nullable=False, server_default="[]"),
)

# Who is logged in to the dashboard: the hash of the cookie's secret, never the secret.
sessions = Table(
    "sessions",
    metadata,
    Column("sha256", Id, primary_key=True),
    Column("key", Id, nullable=False),  # the id of the API key, whose end ends it
    Column("created_at", Seconds, nullable=False),
    Column("expires_at", Seconds, nullable=False, index=True),
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
    Column("user_hash", Name),  # as in episodes
    Column("safety_hash", Name),
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
    Index("ix_events_subject_kind_id", "subject", "kind", "id"),
)

presence = Table(
    "presence",
    metadata,
    Column("id", Id, primary_key=True),
    Column("acknowledged", Indexed, nullable=False),  # task -> champion generation that new episodes use
    Column("in_flight", Indexed, nullable=False),  # adapter -> episodes
    Column("seen_at", Seconds, nullable=False),
    Column("replicas", Indexed, nullable=False, server_default="{}"),  # engine that it asks -> its adapters
)

adapter_holds = Table(
    "adapter_holds",
    metadata,
    Column("adapter", Id, primary_key=True),
    Column("held_until", Seconds, nullable=False),  # somebody is about to need it in the engines
    Column("unloading_until", Seconds, nullable=False),  # somebody takes it out of them
)

# One row a pool: its lock is what lets one round of a pool run at a time.
pools = Table("pools", metadata, Column("name", Id, primary_key=True))

# The workers that live, and what each found when it looked at its engine, its model and its folders.
trainers = Table(
    "trainers",
    metadata,
    Column("id", Id, primary_key=True),
    Column("pool", Name, nullable=False),
    Column("preflight", Verbatim, nullable=False),
    Column("started_at", Seconds, nullable=False),
    Column("seen_at", Seconds, nullable=False),
)

# A panel's version never changes. Its problems carry their content: the log may forget the episodes.
panels = Table(
    "panels",
    metadata,
    Column("task", Id, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("sha256", Name, nullable=False),  # of its problems' hashes, in their order
    Column("reason", Text, nullable=False),
    Column("created_at", Seconds, nullable=False),
)

panel_problems = Table(
    "panel_problems",
    metadata,
    Column("task", Id, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("episode_id", Id, nullable=False, index=True),
    Column("problem", Name, nullable=False),
    Column("pins", Indexed, nullable=False),
    Column("sha256", Name, nullable=False),
    Column("content", Verbatim),  # NULL once it had to be erased
    ForeignKeyConstraint(["task", "version"], ["panels.task", "panels.version"], ondelete="CASCADE"),
)

panel_results = Table(
    "panel_results",
    metadata,
    Column("task", Id, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("adapter", Id, primary_key=True),  # "" is the base model
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("conditions", Name, nullable=False),  # the fingerprint of what answered beside the adapter
    Column("judged", Boolean, nullable=False),
    Column("first_passed", Boolean, nullable=False),
    Column("second_passed", Boolean, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("created_at", Seconds, nullable=False),
    ForeignKeyConstraint(
        ["task", "version", "number"],
        ["panel_problems.task", "panel_problems.version", "panel_problems.number"],
        ondelete="CASCADE",
    ),
)

# What was deleted, each a tombstone for what arrives later: "" narrows by nothing. Rows are never taken away.
deletions = Table(
    "deletions",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),  # what log writers compare
    Column("id", Id, nullable=False, unique=True),
    Column("user_hash", Name, nullable=False),
    Column("key", Name, nullable=False),  # the id of the API key
    Column("episode", Name, nullable=False),
    Column("until_at", Seconds, nullable=False),  # episodes that began later are none of its business
    Column("actor", Name, nullable=False),
    Column("phase", Name, nullable=False),
    Column("report", Indexed, nullable=False),
    Column("created_at", Seconds, nullable=False),
    Column("heartbeat_at", Seconds, nullable=False),
    Column("ended_at", Seconds, nullable=False),
)
