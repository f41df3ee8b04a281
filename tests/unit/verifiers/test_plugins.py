"""Kinds of installed packages: found by entry point, left out with a warning where they are no good, and guarded."""

import logging
import sys
from itertools import count

import pytest

from verifiers.base import Cause, InvalidArgs, InvalidVerifier, Status, Verdict
from verifiers.kind import CODE, NETWORK, Kind
from verifiers.plugins import GROUP, MAX_CHARS, guard, load_kinds

FINE = """
from verifiers.base import Verdict
from verifiers.kind import Kind

class Shouts:
    never_waits = True

    def __init__(self, config):
        self.mark = config.get("mark", "!")

    async def verify(self, request, answer, args):
        return Verdict.passed() if answer["content"].endswith(self.mark) else Verdict.failed("too quiet")

KIND = Kind(
    name="shouts",
    summary="The answer ends with a mark.",
    config_schema={"type": "object", "properties": {"mark": {"type": "string"}}, "additionalProperties": False},
    args_schema={"type": "object", "properties": {}, "additionalProperties": False},
    compile=Shouts,
)

def make():
    return KIND
"""
NUMBERS = count()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one module and its entry points, for this test."""

    def install(code, **entries):
        name = f"mulligan_test_plugin_{next(NUMBERS)}"
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (folder / f"{name}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {name}:{target}" if target else f"{entry} = {name}" for entry, target in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return install


@pytest.mark.parametrize("target", ["KIND", "make"])
async def test_an_entry_is_a_kind_or_makes_one(install, target):
    install(FINE, shouts=target)
    (kind,) = load_kinds(()).values()
    verifier = kind.compile_checked({"mark": "?"})
    assert (kind.name, verifier.never_waits) == ("shouts", True)
    assert (await verifier.verify({}, {"content": "so?"}, {})).status is Status.PASSED
    assert (await verifier.verify({}, {"content": "so"}, {})).reason == "too quiet"
    with pytest.raises(InvalidVerifier, match="shouts"):
        kind.compile_checked({"mark": 5})
    with pytest.raises(InvalidArgs, match="shouts"):
        kind.check_args({}, {"mark": "!"})


@pytest.mark.parametrize(
    ("code", "target", "says"),
    [
        (FINE, "nothing", "AttributeError"),
        ("import nothing_of_that_name", "KIND", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("KIND = (", "KIND", "SyntaxError"),
        ("raise SystemExit(3)", "KIND", "SystemExit: 3"),
        ("KIND = 5", "KIND", "TypeError: 'int' object is not callable"),
        ("KIND = dict", "KIND", "TypeError: it is a dict, not a Kind"),
        ("def KIND(): raise OSError('gone')", "KIND", "OSError: gone"),
        (FINE.replace('"shouts"', '"regex"'), "KIND", "ValueError: there is a kind 'regex' already"),
        (FINE.replace('"shouts"', '"Shouts loudly"'), "KIND", "ValueError: 'Shouts loudly' is no name for a kind"),
        (FINE.replace('"string"', '"strnig"'), "KIND", "BadSchema"),
        (FINE.replace('config_schema={"type": "object", ', "config_schema={"), "KIND", "have to be of objects"),
    ],
)
def test_what_is_no_good_is_left_out(install, caplog, code, target, says):
    install(FINE.replace('"shouts"', '"whispers"'), a="KIND")
    name = install(code, b=target)
    with caplog.at_level(logging.WARNING):
        assert list(load_kinds(["regex"])) == ["whispers"]
    (warned,) = caplog.records
    assert says in warned.getMessage()
    assert f"the entry point b = {name}:{target} of {name} is left out" in warned.getMessage()


def test_the_first_of_one_name_stays(install, caplog):
    install(FINE, a="KIND", b="KIND")
    assert list(load_kinds(())) == ["shouts"]
    assert "the entry point b = " in caplog.text
    assert "there is a kind 'shouts' already" in caplog.text


class SaysVerifier:
    """Returns what it is told to."""

    def __init__(self, value):
        self.value = value

    async def verify(self, request, answer, args):
        return self.value


def make_guarded(**more):
    anything = {"type": "object"}
    return guard(
        Kind("odd", "", anything, anything, **{"compile": lambda config: SaysVerifier(config["says"]), **more})
    )


@pytest.mark.parametrize(
    "value",
    [
        None, True, "passed", Verdict(Status.SKIPPED, 0.0), Verdict("passed?", 1.0), Verdict.passed(score=1.5),
        Verdict.passed(score=float("nan")), Verdict.passed(score=True), Verdict.passed(score="1"), Verdict.passed(None),
        Verdict(Status.ABSTAINED, 0.0, "no cause"), Verdict(Status.PASSED, 1.0, cause=Cause.BROKE),
        Verdict.passed(stdout=b""),
    ],
)  # fmt: skip
async def test_what_is_no_verdict_abstains(value):
    found = await make_guarded().compile({"says": value}).verify({}, {}, {})
    assert (found.status, found.cause) == (Status.ABSTAINED, Cause.BAD_RETURN)


async def test_a_reason_is_cut_and_cleaned():
    told = Verdict.failed("\0\ud800" + "x" * 9999, stdout="y" * 9999, safe_for_model=True)
    found = await make_guarded().compile({"says": told}).verify({}, {}, {})
    assert found.reason.startswith("\ufffd\ufffd")
    assert "\0" not in found.reason.encode().decode()
    assert max(len(found.reason), len(found.stdout)) < MAX_CHARS + 10
    assert (found.status, found.safe_for_model) == (Status.FAILED, True)


def fail(*_):
    raise KeyError("oh")


def test_what_breaks_is_a_refusal():
    broken = make_guarded(compile=fail, accept_args=fail, find_needs=fail)
    with pytest.raises(InvalidVerifier, match="odd: KeyError: 'oh'"):
        broken.compile_checked({})
    with pytest.raises(InvalidArgs, match="odd: KeyError: 'oh'"):
        broken.check_args({}, {})
    assert broken.find_needs({}) == {CODE, NETWORK}
    with pytest.raises(InvalidVerifier, match="which is no verifier"):
        make_guarded(compile=lambda config: 5).compile_checked({})


@pytest.mark.parametrize(
    ("needs", "found"),
    [((), set()), ([CODE], {CODE}), ({NETWORK}, {NETWORK}), ("root", {CODE, NETWORK}), (None, {CODE, NETWORK})],
)
def test_needs_are_known_ones(needs, found):
    assert make_guarded(find_needs=lambda config: needs).find_needs({}) == found


def test_refusals_of_its_own_pass_through():
    def refuse(config):
        raise InvalidVerifier("no", "/there")

    with pytest.raises(InvalidVerifier) as caught:
        make_guarded(compile=refuse).compile_checked({})
    assert (caught.value.message, caught.value.where) == ("no", "/there")
