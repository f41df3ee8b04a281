"""The commands of `mulligan verifiers` that withdraw a version, and the one that compares two of them."""

from typing import Annotated

import typer

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings, split_pin
from server.cli.pins import find_verifier
from server.cli.show import print_fields, print_json, print_things
from server.errors import Conflict, InvalidRequest
from server.store.agreement import MOST_ATTEMPTS, NEWEST_ATTEMPTS, Agreement, measure_agreement
from server.store.database import Database
from server.store.tasks import TaskStore
from server.store.verifiers import VerifierStore
from server.store.withdrawals import Withdrawals

ACTOR = "command line"

_FLIPS = {
    "episode": lambda flip: flip.episode_id,
    "attempt": lambda flip: flip.attempt,
    "old": lambda flip: flip.old,
    "new": lambda flip: flip.new,
}


def archive(
    pin: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="All versions of a verifier, or one.")],
    *,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Archive a verifier: nothing new is bound to it, and episodes keep it. Adding its name again revives it."""
    name, version = split_pin(pin)
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    archival = ask_database(settings, lambda database: Withdrawals(database).archive(name, version, actor=ACTOR))
    if archival.still_pinned:
        names = [*(f"the task {task}" for task in archival.tasks), *(f"the key {key}" for key in archival.keys)]
        raise Conflict(f"{pin} is still pinned by {', '.join(names)}: pin another version there first")
    if as_json:
        print_json(archival.versions)
    else:
        print_fields({"archived": ", ".join(one.pin for one in archival.versions)})


def revoke(
    pin: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version that turned out to be wrong.")],
    *,
    reason: Annotated[str, typer.Option(help="Why, for people and the audit log.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke a version: what pins it goes back to the one before, nothing learns from it, its adapters are flagged."""
    name, version = split_pin(pin)
    if version is None:
        raise InvalidRequest(f"say which version of {name} is revoked, as in {name}@2")
    if not reason.strip():
        raise InvalidRequest("say with --reason why: the audit log keeps it")
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    done = ask_database(settings, lambda database: Withdrawals(database).revoke(name, version, reason, actor=ACTOR))
    if as_json:
        print_json(done)
        return
    print_fields(
        {
            "revoked": done.verifier,
            "reason": done.reason,
            f"back to {done.former}": ", ".join(
                [*(f"task {one}" for one in done.tasks), *(f"key {k}" for k in done.keys)]
            ),
            "abstains, for there is none before": ", ".join(
                [*(f"task {one}" for one in done.tasks_left), *(f"key {one}" for one in done.keys_left)]
            ),
            "adapters flagged": ", ".join(done.adapters),
        }
    )


def agreement(
    pin: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The new version; by default the latest.")],
    *,
    other: Annotated[
        int | None, typer.Option("--with", min=1, help="The version to compare with. [default: the one before]")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Attempts of this task only. [default: all that bind it]")] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MOST_ATTEMPTS, help="How many of the newest attempts to look at.")
    ] = NEWEST_ATTEMPTS,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show how far two versions agree on the logged attempts that both judged, one of them observing."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def measure(database: Database) -> Agreement:
        new = await find_verifier(database, pin)
        versions = await VerifierStore(database).versions(new.name)
        old = other or next((one.version for one in versions if one.version < new.version), None)
        if old is None:
            raise InvalidRequest(f"{new.pin} has no version before it: say --with")
        await find_verifier(database, f"{new.name}@{old}")
        tasks = [one.name for one in await TaskStore(database).list() if any(p.name == new.name for p in one.verifiers)]
        chosen = [task] if task is not None else tasks
        return await measure_agreement(database, new.name, new.version, old, tasks=chosen, limit=limit)

    found = ask_database(settings, measure)
    if as_json:
        print_json(found)
        return
    new, old = f"{found.verifier}@{found.version}", f"{found.verifier}@{found.compared_with}"
    share = "nothing to compare yet: let one of them observe beside the other (`mulligan tasks update T --observe`)"
    print_fields(
        {
            "agreement": share if found.agreement is None else f"{found.agreement:.1%} of {found.n}",
            "both passed": found.both_passed,
            "both failed": found.both_failed,
            f"only {new} passed": found.only_new_passed,
            f"only {old} passed": found.only_old_passed,
            f"{new} abstained": found.new_abstained,
            f"{old} abstained": found.old_abstained,
            "attempts": f"{found.both} of the newest {found.read} were judged by both",
        }
    )
    if found.flips:
        print_things(found.flips, _FLIPS, as_json=False, title="They differ on (`mulligan episodes show ID`):")
