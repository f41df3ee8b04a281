"""The alert rules as Prometheus itself reads them: needs promtool (Debian: `apt install prometheus`), else skips."""

import shutil
import subprocess

import pytest

from tests.fixtures.compose_file import ROOT

FOLDER = ROOT / "docker" / "prometheus"


@pytest.mark.parametrize("check", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(check):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: the rules were parsed as YAML only (tests/component)")
    ran = subprocess.run([promtool, *check], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
