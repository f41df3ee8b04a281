"""`mulligan lineage`: from a request to the adapters that learnt from it, and back."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from server.cli.options import AsJson, DatabaseUrl, DataDir, ask_database, load_settings
from server.cli.round_words import describe_objective
from server.cli.show import print_json, standard_console, tame, when
from server.errors import NotFound
from server.orchestration.lineage import describe_trace
from server.store.left_out import OPTED_OUT
from server.store.lineage import MOST_COUNTED, LineageStore

_MOST_SHOWN = 10
"""Of a list of names a tree shows so many; `--json` has more."""

Values = Mapping[str, Any]


def lineage(
    thing: Annotated[str, typer.Argument(metavar="EPISODE|ADAPTER|ROUND", help="ep_..., TASK@NUMBER or rd_...")],
    as_json: AsJson = False,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Show where an episode, an adapter or a round comes from and what became of it, from the log.

    Request, attempts, reflections, the rounds that trained on it, their adapters, and the episodes that these served.
    """
    settings = load_settings(data_dir=data_dir, database_url=database_url)
    try:
        trace = ask_database(settings, lambda database: LineageStore(database).trace(thing))
    except NotFound as error:
        if error.code != "lineage_not_found":
            raise
        lists = "`mulligan episodes list`, `mulligan adapters list` and `mulligan round list` show those there are"
        raise NotFound(f"there is no episode, adapter or round {thing!r}: {lists}") from error
    described = describe_trace(trace)
    if as_json:
        print_json(described)
    else:
        standard_console().print(grow(described))


def grow(described: Values) -> Tree:
    """Make the tree of a described lineage."""
    if described["kind"] == "episode":
        return _grow_episode(described)
    if described["kind"] == "round":
        return _grow_round(Tree(""), described["rounds"][0], root=True)
    root = _grow_adapter(Tree(""), described["adapter"], root=True)
    for one in described["rounds"]:
        _grow_round(root, one)
    return root


def _grow_episode(described: Values) -> Tree:
    episode = described["episode"]
    root = Tree(_line("episode", episode["id"], episode["outcome"], f"task {episode['task']}", episode["split"]))
    kept_out = {"store": "its content is not in the log", "trains": OPTED_OUT}
    asked = root.add(_line("request", f"model {episode['model']}", when(episode["created_at"])))
    for name, why in kept_out.items():
        if not episode[name]:
            asked.add(Text(why))
    for one in episode["attempts"]:
        tokens = f"{one['prompt_tokens']} + {one['completion_tokens']} tokens"
        branch = root.add(_line("attempt", one["number"], one["status"], tokens, _by(episode["adapter"])))
        for verdict in one["verdicts"]:
            mode = "" if verdict["mode"] == "enforce" else verdict["mode"]
            branch.add(_line("verdict", verdict["verifier"], verdict["status"], mode))
        for reflection in episode["reflections"]:
            if reflection["attempt"] == one["number"]:
                _grow_reflection(root, reflection)
    if described["adapter"]:
        _grow_adapter(root, described["adapter"], word="served by")
    for one in described["rounds"]:
        _grow_round(root, one, word="trained on by")
    if not described["rounds"]:
        root.add(Text("no round trained on it"))
    return root


def _grow_reflection(root: Tree, reflection: Values) -> None:
    tokens = f"{reflection['prompt_tokens']} + {reflection['completion_tokens']} tokens"
    branch = root.add(_line("reflection", f"on attempt {reflection['attempt']}", tokens, _by(reflection["adapter"])))
    branch.add(_line("template", reflection["template_hash"] or "unknown"))
    kept = [f"{count} {name.replace('_', ' ')}" for name, count in reflection["kept"].items() if count]
    branch.add(_line("kept", ", ".join(kept) or "neither token ids nor logprobs: it is never trained on"))


def _grow_round(parent: Tree, one: Values, *, word: str = "round", root: bool = False) -> Tree:
    step = f"from step {one['step']}" if one["step"] else ""
    number = f"number {one['number']} of {one['task']}"
    branch = _add(parent, _line(word, one["id"], one["state"], number, step), root=root)
    if one["reason"]:
        branch.add(_line("because", one["reason"]))
    branch.add(_line("went on from", one["parent"] or "(base)"))
    if objective := describe_objective(one):
        branch.add(_line("objective", objective))
    used = one["episodes"]
    listed = branch.add(_line("trained on", f"{used['count']} episodes"))
    for name in used["ids"][:_MOST_SHOWN]:
        listed.add(Text(name))
    if used["ids"] and used["count"] > _MOST_SHOWN:
        listed.add(Text(f"and {used['count'] - _MOST_SHOWN} more"))
    if one["adapter"]:
        _grow_adapter(branch, one["adapter"])
    return branch


def _grow_adapter(parent: Tree, adapter: Values, *, word: str = "adapter", root: bool = False) -> Tree:
    forced = "forced" if adapter["forced"] else ""
    branch = _add(parent, _line(word, adapter["name"], adapter["status"], forced), root=root)
    branch.add(_line("from", " < ".join([*adapter["ancestors"], "(base)"])))
    branch.add(_line("rewarded by", ", ".join(adapter["verifiers"]) or "no registered verifier"))
    for flag in adapter["flags"]:
        branch.add(_line("flag", flag))
    for name, digest in adapter["files"].items():
        branch.add(_line("file", name, f"sha256 {digest}"))
    if served := adapter["served"]["count"]:
        ends = adapter["served"]
        said = f"{served}{' or more' if served >= MOST_COUNTED else ''} episodes"
        first = f"first {ends['first']} at {when(ends['first_at'])}"
        branch.add(_line("served", said, first, f"last {ends['last']} at {when(ends['last_at'])}"))
    else:
        branch.add(_line("served", "no episode"))
    if names := adapter["descendants"]:
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        branch.add(_line("went on in", ", ".join(names[:_MOST_SHOWN]) + more))
    return branch


def _add(parent: Tree, line: Text, *, root: bool) -> Tree:
    return Tree(line) if root else parent.add(line)


def _line(word: str, *parts: Any) -> Text:
    """Write one line: its word, then what is said, in one piece and without any markup."""
    return Text.assemble((word, "dim"), " ", tame(", ".join(str(part) for part in parts if part != "")))


def _by(adapter: str) -> str:
    return f"by {adapter or '(base)'}"
