"""A round finds its task's hidden verifiers, and binds them to the problems of its gate."""

from types import SimpleNamespace
from typing import Any, cast

from server.domain import BindingMode, Task, TaskVerifier
from server.store.database import Database
from server.store.verifiers import VerifierStore
from server.store.withdrawals import Withdrawals
from tests.fixtures.episodes import make_episode
from trainer import dataset, gate_audit
from trainer.round import find_audits


async def test_the_hidden_verifiers_of_today_are_bound_beside_what_counts(database: Database):
    verifiers = VerifierStore(database)
    for name in ("counts", "hidden", "watching", "revoked"):
        await verifiers.add(name, "regex", {"pattern": name})
    await Withdrawals(database).revoke("revoked", 1, "it was wrong", actor="key_1")
    modes = {"hidden": BindingMode.AUDIT, "watching": BindingMode.OBSERVE, "revoked": BindingMode.AUDIT}
    pins = [TaskVerifier(name, 1, when={"answer": "text"}, mode=mode) for name, mode in modes.items()]
    task = Task("t", (TaskVerifier("counts", 1), *pins))
    desk = cast(Any, SimpleNamespace(task=task, stores=SimpleNamespace(verifiers=verifiers)))
    (audit,) = await find_audits(desk)
    assert (audit.pin, audit.kind, audit.config, audit.when) == (
        "hidden@1",
        "regex",
        {"pattern": "hidden"},
        {"answer": "text"},
    )
    logged = make_episode(split="held_out")
    (problem,) = gate_audit.add_audits(dataset.choose_problems([logged], ()), [logged], [audit])
    assert problem.bindings == (*logged.bindings, audit)
