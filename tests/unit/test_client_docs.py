import json
import re

from tools.client_docs import CLIENTS, PAGE, SCRIPTS, render_page


def test_the_page_is_what_the_scripts_say():
    assert PAGE.read_text() == render_page(), "run `make docs`"


def test_every_script_is_on_the_page():
    assert {path.name for path in SCRIPTS.glob("*.*") if path.suffix in (".py", ".mjs", ".sh")} == {
        *CLIENTS,
        "setup.sh",
    }


def test_what_is_installed_is_pinned_and_names_no_place_to_fetch_it_from():
    for path in SCRIPTS.glob("requirements*.txt"):
        pins = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-zA-Z0-9._-]+==[a-zA-Z0-9.+]+", pin) for pin in pins), path
        assert not any(pin.startswith("torch") for pin in pins), path
    lock = json.loads((SCRIPTS / "package-lock.json").read_text())
    assert lock["packages"]
    assert not any("resolved" in package for package in lock["packages"].values())
