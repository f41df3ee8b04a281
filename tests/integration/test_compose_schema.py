"""docker-compose.yml against the Compose specification's own JSON schema, as the wheel of check-jsonschema has it.

Needs `make oracles`; where that is missing these tests are skipped, and in CI they fail.
"""

import copy
import json
import os

import jsonschema_rs
import pytest

from tests.fixtures.compose_file import ROOT, interpolate, parse, variables

SCHEMA = "lib/python*/site-packages/check_jsonschema/builtin_schemas/vendor/compose-spec.json"


@pytest.fixture(scope="module")
def validator():
    found = next((ROOT / ".venv-oracles").glob(SCHEMA), None)
    if found is None:
        missing = "check-jsonschema is not installed (make oracles): docker-compose.yml was not checked by its schema"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return jsonschema_rs.validator_for(json.loads(found.read_text()))


def complaints(validator, file) -> list[str]:
    return [f"{'.'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(file)]


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_the_file_keeps_to_the_specification(validator, profile):
    assert complaints(validator, parse()) == []
    assert complaints(validator, interpolate(parse(), variables(profile))) == []


@pytest.mark.parametrize(
    ("service", "field", "value"),
    [
        ("api", "depend_on", ["postgres"]),
        ("api", "ports", {"8000": "8000"}),
        ("postgres", "healthcheck", {"test": ["CMD", "true"], "every": "5s"}),
        ("engine", "shm_size", ["8gb"]),
        ("beat", "depends_on", {"postgres": {"condition": 1}}),
    ],
)
def test_the_schema_would_find_a_slip(validator, service, field, value):
    file = copy.deepcopy(parse())
    file["services"][service][field] = value
    assert complaints(validator, file)
