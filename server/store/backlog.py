"""Keeps episodes in the spool while the database is away, and brings them home.

Owned by the episode log. It holds this process's spool file, made when first needed, and adopts the files of processes
that died. Bringing home is idempotent, so a crash halfway through only means doing it again.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import structlog

from server.store.episode_insert import EpisodeInserter, set_aside
from server.store.episode_rows import COLUMNS, SINCE, EpisodeRows, Row
from server.store.spool import SpoolFile, TornFrame, leftovers

log = structlog.get_logger(__name__)

BATCH = 200
BATCH_BYTES = 8 * 2**20
_encoder = msgspec.msgpack.Encoder()
_decode_columns = msgspec.msgpack.Decoder(tuple[tuple[str, ...], ...]).decode
_decode_record = msgspec.msgpack.Decoder(EpisodeRows).decode


class Backlog:
    """The episodes of this process that the database does not have yet."""

    def __init__(self, folder: Path, max_bytes: int, inserter: EpisodeInserter) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._inserter = inserter
        self._own: SpoolFile | None = None
        self.stopping = False

    @property
    def empty(self) -> bool:
        """Whether none of our own is waiting."""
        return self._own is None or self._own.empty

    @property
    def size_bytes(self) -> int:
        """How large our own file is."""
        return 0 if self._own is None else self._own.size

    async def append(self, batch: Sequence[EpisodeRows]) -> list[bool]:
        """Write a batch to the disk; says of each whether it is safe there. Raises: OSError."""
        return await asyncio.to_thread(self._append, batch)

    def _append(self, batch: Sequence[EpisodeRows]) -> list[bool]:
        payloads: list[bytes | None] = []
        for record in batch:
            try:
                payloads.append(_encoder.encode(record))
            except (OverflowError, ValueError) as error:  # a number that no database would take either
                set_aside(self._folder, record, error)
                payloads.append(None)
        if self._own is None:
            self._own = SpoolFile.create(self._folder, _encoder.encode(COLUMNS), max_bytes=self._max_bytes)
        taken = iter(self._own.append([payload for payload in payloads if payload is not None]))
        return [payload is None or next(taken) for payload in payloads]

    async def replay_own(self) -> None:
        """Bring our own episodes home. Raises: what `EpisodeInserter.insert` raises, and OSError."""
        if self._own is None or self._own.empty:
            return
        own = self._own
        place, torn = await self._replay(own)
        if torn:
            self._own = None  # the next append begins a new file
            await asyncio.to_thread(own.set_aside, place)
        elif await asyncio.to_thread(own.clear, place):
            log.info("All spooled episodes are in the database")

    async def adopt(self) -> None:
        """Bring home what dead processes left. Raises: what `EpisodeInserter.insert` raises, and OSError."""
        own = None if self._own is None else self._own.path
        for path in await asyncio.to_thread(leftovers, self._folder, own=own):
            if self.stopping:
                return
            file = await asyncio.to_thread(SpoolFile.adopt, path)
            if file is not None:
                await self._replay_adopted(file)

    async def _replay_adopted(self, file: SpoolFile) -> None:
        try:
            place, torn = await self._replay(file)
        except BaseException:
            await asyncio.to_thread(file.release)
            raise
        if torn:
            await asyncio.to_thread(file.set_aside, place)
        elif place < file.size:
            await asyncio.to_thread(file.release)
        else:
            await asyncio.to_thread(file.discard)
            log.info("The spooled episodes of another process are in the database", file=str(file.path))

    async def _replay(self, file: SpoolFile) -> tuple[int, bool]:
        """Insert a file's episodes: up to which place it was read, and whether what follows there is torn."""
        reader = _Reader(file)
        while not self.stopping and (batch := await asyncio.to_thread(reader.read_batch)):
            await self._inserter.insert(batch)
        return reader.place, reader.torn

    async def close(self) -> None:
        """Let go of our own file; another process may adopt what is in it."""
        if self._own is not None:
            await asyncio.to_thread(self._own.discard if self._own.empty else self._own.release)
            self._own = None


class _Reader:
    """Reads one spool file in batches."""

    def __init__(self, file: SpoolFile) -> None:
        self._records = self._decode(file)
        self.place = 0
        self.torn = False

    def read_batch(self) -> list[EpisodeRows]:
        """Read the next records, so many that they fit easily into memory and a transaction; none at the end."""
        batch: list[EpisodeRows] = []
        start = self.place
        for record in islice(self._records, BATCH):
            batch.append(record)
            if self.place - start > BATCH_BYTES:
                break
        return batch

    def _decode(self, file: SpoolFile) -> Iterator[EpisodeRows]:
        columns: tuple[tuple[str, ...], ...] = ()
        try:
            for end, payload in file.read():
                if not columns:
                    columns = _decode_columns(payload)
                    self.place = end
                else:
                    record = _arrange(_decode_record(payload), columns)
                    self.place = end
                    yield record
        except (TornFrame, msgspec.DecodeError):
            self.torn = True


def _arrange(record: EpisodeRows, columns: tuple[tuple[str, ...], ...]) -> EpisodeRows:
    """Bring a record that another version of the software wrote into the order of today's columns.

    A column that is gone is dropped; one that is new has the value of the time before it, or is None, which the
    database takes or the record is set aside.
    """
    if columns == COLUMNS:
        return record

    def arrange(row: Row, table: int) -> Row:
        values = dict(zip(columns[table], row, strict=True))
        return tuple(values.get(column, SINCE.get(column)) for column in COLUMNS[table])

    return EpisodeRows(
        arrange(record.episode, 0),
        tuple(arrange(row, 1) for row in record.attempts),
        tuple(arrange(row, 2) for row in record.reflections),
    )
