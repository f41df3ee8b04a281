"""Names the months that the log's tables are partitioned by, and tells partitions from tables. Pure, no database here.

An episode's id begins with the millisecond that it was made in and ids are compared byte by byte, so a month is a range
of ids. Months are those of UTC. Called by the retention store, by Alembic's entry and by tests.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.store.tables import attempts, episodes, reflections

LOG = (str(episodes.name), str(attempts.name), str(reflections.name))
"""The partitioned tables, the one that the others belong to first: in this order they are locked and written."""

KEYS = {"episodes": "id", "attempts": "episode_id", "reflections": "episode_id"}
DEFAULT = "default"
"""The partition of what no other one takes."""

_PARTITION = re.compile(rf"({'|'.join(LOG)})_(default|(before_)?\d{{4}}_\d{{2}})(_to_drop)?$")


@dataclass(frozen=True, order=True, slots=True)
class Month:
    """A month of UTC, as a count since the year 0."""

    number: int

    @classmethod
    def of(cls, at: float) -> "Month":
        """Name the month of a time in Unix seconds."""
        moment = datetime.fromtimestamp(at, UTC)
        return cls(moment.year * 12 + moment.month - 1)

    @property
    def name(self) -> str:
        """Such as `2026_11`, as partitions are named."""
        return f"{self.number // 12:04}_{self.number % 12 + 1:02}"

    @property
    def begins_at(self) -> float:
        """Its first moment, in Unix seconds."""
        return datetime(self.number // 12, self.number % 12 + 1, 1, tzinfo=UTC).timestamp()

    @property
    def first_id(self) -> str:
        """The id that no id of this month is below."""
        return border_id(self.begins_at)

    def plus(self, months: int) -> "Month":
        """Name the month that is so many later."""
        return Month(self.number + months)


def border_id(at: float) -> str:
    """Make the id that parts what was made before `at` (Unix seconds, not negative) from what was made since."""
    return f"ep_{int(at * 1000):012x}"


def read_time(episode_id: str) -> float | None:
    """Read when an id was made, in Unix seconds; None where it is not one that we make."""
    match = re.match(r"ep_([0-9a-f]{12})", episode_id)
    return int(match[1], 16) / 1000 if match else None


def is_partition(table: str) -> bool:
    """Say whether a table is a partition of the log, by its name."""
    return bool(_PARTITION.match(table))


def include_on(dialect: str) -> Callable[..., bool]:
    """Make Alembic's `include_object` for a dialect: what is compared with the tables.

    On PostgreSQL not the partitions, which come and go by themselves, nor the foreign keys inside the log: there are
    such from partition to partition, so that a month can go without a look at the others.
    """

    def include(thing: Any, name: str | None, kind: str, reflected: bool, _compare_to: Any) -> bool:
        if kind == "table":
            return not (reflected and is_partition(name or ""))
        if kind == "foreign_key_constraint":
            return not (thing.parent.name in LOG[1:] and thing.referred_table.name == LOG[0])
        return True

    return include if dialect == "postgresql" else lambda *_: True
