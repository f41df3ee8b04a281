"""`mulligan tasks audit`: whether a task's answers pass without being right."""

from typing import Annotated

import typer

from server.cli.named import find_task
from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.show import print_json, print_things, standard_console
from server.orchestration.audit import AuditReport, audit_task
from server.store.audit import AuditStore
from server.store.database import Database

SIGNALS = {
    "signal": lambda finding: finding.signal.value,
    "state": lambda finding: finding.state.value,
    "what was seen": lambda finding: finding.said,
    "fires where": lambda finding: finding.threshold,
    "look at": lambda finding: ", ".join(finding.examples),
}
FEEDBACK = {
    "verifier": lambda one: one.verifier,
    "verdicts with feedback": lambda one: one.verdicts,
    "passed, but wrong": lambda one: one.passed_but_wrong,
    "failed, but right": lambda one: one.failed_but_right,
}


def audit(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Audit a task's newest answers now: do they pass without being right? Nothing is changed and nothing told."""
    settings = load_settings(data_dir=data_dir, database_url=database_url)

    async def look(database: Database) -> AuditReport:
        return await audit_task(await find_task(database, name), AuditStore(database))

    report = ask_database(settings, look)
    if as_json:
        print_json(report)
        return
    suspicion = "reward hacking is suspected" if report.suspected else "nothing suspicious was found"
    champion = report.champion or "(base)"
    standard_console().print(
        f"task {report.task}, champion {champion}, {report.attempts} judged attempts: {suspicion}", markup=False
    )
    print_things(report.findings, SIGNALS, as_json=False)
    if report.feedback:
        print_things(report.feedback, FEEDBACK, as_json=False)
