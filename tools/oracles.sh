#!/usr/bin/env bash
# Install the outside oracles that tests compare with (bfcl-eval: its AST checker and its data; check-jsonschema: the
# Compose specification's schema) into an environment of their own, .venv-oracles at the repository root. Seconds.
#
#   tools/oracles.sh           install, or do nothing where this list has been installed already
#   FORCE=1 tools/oracles.sh   install again from nothing
#
# PYTHON names the interpreter that the environment is made from (3.11 or newer; default python3.11, else python3).
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_environment "${BASH_SOURCE[0]}" "The oracles" .venv-oracles tools/oracles-requirements.txt --no-deps --require-hashes
