"""The decoding thread: takes sequences in, keeps one running batch a model, and tells the HTTP side what changed.

The HTTP side calls all methods from its event loop; only the thread touches tensors. All news of one step crosses over
in one call, so a step costs the event loop one wake-up however many rows it has.
"""

import asyncio
import logging
import threading
from collections import deque

import torch
from transformers import PreTrainedModel

from local_engine.errors import Refused
from local_engine.models import Base
from local_engine.prefixes import PrefixStore
from local_engine.running_batch import RunningBatch
from local_engine.sequences import Finish, Sequence

BASE = ""
"""The name of the model without an adapter."""

_PREFIX_BYTES = 128 * 2**20

_log = logging.getLogger(__name__)


class _Served:
    """One model that is served. The event loop counts what is in flight; the thread knows only the batch."""

    def __init__(self, batch: RunningBatch) -> None:
        self.batch = batch
        self.in_flight = 0
        self.drained = asyncio.Event()
        self.drained.set()


class Decoder:
    """Runs sequences to their end, whatever adapter they use."""

    def __init__(self, base: Base, *, max_running: int, max_adapters: int) -> None:
        self._base = base
        self._max_running = max_running
        self._max_adapters = max_adapters
        self._prefixes = PrefixStore(_PREFIX_BYTES)
        self._served = {BASE: self._serve(base.model)}  # the least recently used first
        self._inbox: deque[tuple[Sequence, _Served]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is in flight is dropped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=1.0)

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded adapters."""
        return [name for name in self._served if name != BASE]

    def submit(self, sequence: Sequence) -> None:
        """Take a sequence in. Raises: Refused where its adapter is not loaded."""
        served = self._served.get(sequence.adapter)
        if served is None:
            raise Refused(
                f"Got LoRA adapter that has never been loaded: {sequence.adapter}\n"
                f"All loaded adapters: {self.adapters}."
            )
        self._served[sequence.adapter] = self._served.pop(sequence.adapter)
        served.in_flight += 1
        served.drained.clear()
        with self._wake:
            self._inbox.append((sequence, served))
            self._wake.notify()

    def load(self, name: str, model: PreTrainedModel) -> None:
        """Serve a model under an adapter's name, in place of the least recently used idle one where there is no room.

        Raises: Refused where the name is taken, or where there is no room and all others are in use.
        """
        self.check_free(name)
        if len(self.adapters) >= self._max_adapters:
            idle = next((other for other in self.adapters if not self._served[other].in_flight), None)
            if idle is None:
                raise Refused(f"all {self._max_adapters} adapters that may be loaded are in use.")
            del self._served[idle]
        self._served[name] = self._serve(model)

    def check_free(self, name: str) -> None:
        """Look whether a name can be loaded. Raises: Refused where it is loaded."""
        if name in self._served:
            raise Refused(f"Failed to load LoRA adapter {name} because it is already loaded")

    async def unload(self, name: str) -> None:
        """Refuse new sequences of an adapter at once, and wait until those in flight have ended.

        Raises: Refused where it is not loaded.
        """
        served = self._served.pop(name, None) if name != BASE else None
        if served is None:
            raise Refused(f"LoRA with name {name} does not exist. Loaded LoRAs: {self.adapters}")
        await served.drained.wait()

    def _serve(self, model: PreTrainedModel) -> _Served:
        return _Served(RunningBatch(self._base, model, self._prefixes))

    def _run(self) -> None:
        active: list[_Served] = []
        with torch.inference_mode():
            while not self._stopping:
                waiting = self._take_waiting(active)
                active += [served for served in waiting if served not in active]
                ended = [(sequence, s) for s in active for sequence in _advance(s.batch, waiting.get(s, []))]
                grown = [sequence for s in active for sequence in s.batch.sequences if sequence.streams]
                active = [served for served in active if served.batch.sequences]
                if ended or grown:
                    self._loop.call_soon_threadsafe(_deliver, ended, grown)

    def _take_waiting(self, active: list[_Served]) -> dict[_Served, list[Sequence]]:
        """Take what there is room for; with nothing to do, wait for something."""
        room = self._max_running - sum(len(served.batch.sequences) for served in active)
        waiting: dict[_Served, list[Sequence]] = {}
        with self._wake:
            while not active and not self._inbox and not self._stopping:
                self._wake.wait()
            while self._inbox and room > 0:
                sequence, served = self._inbox.popleft()
                waiting.setdefault(served, []).append(sequence)
                room -= 1
        return waiting


def _advance(batch: RunningBatch, waiting: list[Sequence]) -> list[Sequence]:
    """Let the waiting ones join, take one step, and give back those that ended."""
    ended = [sequence for sequence in waiting if sequence.aborted]
    for sequence in ended:
        sequence.finish = Finish("abort")
    try:
        ended += batch.join([sequence for sequence in waiting if not sequence.aborted])
        ended += batch.step()
    except Exception as error:  # noqa: BLE001  # whatever broke a step, its clients must hear; other models go on
        _log.exception("a decoding step failed")
        failed = batch.fail(f"{type(error).__name__}: {error}", waiting)
        ended += [sequence for sequence in failed if sequence not in ended]
    return ended


def _deliver(ended: list[tuple[Sequence, _Served]], grown: list[Sequence]) -> None:
    for sequence in grown:
        sequence.changed.set()
    for sequence, served in ended:
        sequence.changed.set()
        served.in_flight -= 1
        if not served.in_flight:
            served.drained.set()
