"""The decoding thread: takes sequences in, keeps running batches for each model, and tells the HTTP side what changed.

The HTTP side calls all methods from its event loop; only the thread touches tensors. All news of one step crosses over
in one call, so a step costs the event loop one wake-up however many rows it has.

Patient sequences (a priority below 0: what a training round asks) decode in batches of their own, and stand still
while others decode, but for one step in `YIELD_STEPS`: a busy engine makes them slow, and never so late that whoever
asked gives up. They take no room from the others.
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

YIELD_STEPS = 8
"""While there are urgent sequences, patient ones take one step for so many of theirs."""

PATIENT_JOINS = 8
"""So many patient sequences join at once: a prompt that is being computed cannot be put off any more."""

_PREFIX_BYTES = 128 * 2**20

_log = logging.getLogger(__name__)


class _Lane:
    """One of a model's two batches: of what is urgent, or of what is patient."""

    def __init__(self, served: "_Served", batch: RunningBatch, *, patient: bool) -> None:
        self.served, self.batch, self.patient = served, batch, patient


class _Served:
    """One model that is served. The event loop counts what is in flight; the thread knows only the batches."""

    def __init__(self, urgent: RunningBatch, patient: RunningBatch) -> None:
        self.lanes = (_Lane(self, urgent, patient=False), _Lane(self, patient, patient=True))
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
        self._inbox: deque[tuple[Sequence, _Lane]] = deque()
        self._patient_inbox: deque[tuple[Sequence, _Lane]] = deque()
        self._steps_alone = 0  # that urgent sequences took since patient ones had their last
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
            (self._patient_inbox if sequence.patient else self._inbox).append(
                (sequence, served.lanes[sequence.patient])
            )
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
        return _Served(*(RunningBatch(self._base, model, self._prefixes) for _ in range(2)))

    def _run(self) -> None:
        active: list[_Lane] = []
        with torch.inference_mode():
            while not self._stopping:
                waiting = self._take_waiting(active)
                active += [lane for lane in waiting if lane not in active]
                turn = [lane for lane in active if not lane.patient or not self._steps_alone]
                ended = [(sequence, lane) for lane in turn for sequence in _advance(lane.batch, waiting.get(lane, []))]
                grown = [sequence for lane in turn for sequence in lane.batch.sequences if sequence.streams]
                active = [lane for lane in active if lane.batch.sequences]
                if ended or grown:
                    self._loop.call_soon_threadsafe(_deliver, ended, grown)

    def _take_waiting(self, active: list[_Lane]) -> dict[_Lane, list[Sequence]]:
        """Take what there is room for; with nothing to do, wait for something. Decides whose turn it is."""
        waiting: dict[_Lane, list[Sequence]] = {}
        with self._wake:
            while not active and not self._inbox and not self._patient_inbox and not self._stopping:
                self._wake.wait()
            urgent = bool(self._inbox) or any(not lane.patient for lane in active)
            self._steps_alone = (self._steps_alone + 1) % YIELD_STEPS if urgent else 0
            room = self._max_running - sum(len(lane.batch.sequences) for lane in active if not lane.patient)
            _take(self._inbox, room, waiting)
            if not self._steps_alone:
                running = sum(len(lane.batch.sequences) for lane in active) + sum(map(len, waiting.values()))
                _take(self._patient_inbox, min(self._max_running - running, PATIENT_JOINS), waiting)
        return waiting


def _take(inbox: deque[tuple[Sequence, _Lane]], room: int, waiting: dict[_Lane, list[Sequence]]) -> None:
    """Take up to `room` sequences out of an inbox, each to those that wait for its batch."""
    while inbox and room > 0:
        sequence, lane = inbox.popleft()
        waiting.setdefault(lane, []).append(sequence)
        room -= 1


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


def _deliver(ended: list[tuple[Sequence, _Lane]], grown: list[Sequence]) -> None:
    for sequence in grown:
        sequence.changed.set()
    for sequence, lane in ended:
        sequence.changed.set()
        served = lane.served
        served.in_flight -= 1
        if not served.in_flight:
            served.drained.set()
