#!/usr/bin/env bash
# Install the peers of the gateway benchmark (sglang-router, LiteLLM, the clients of the plain proxies) into an
# environment of their own, .venv-bench at the repository root: their pins differ from ours.
#
#   tools/bench-peers.sh           install, or do nothing where this list has been installed already
#   FORCE=1 tools/bench-peers.sh   install again from nothing
#
# PYTHON names the interpreter that the environment is made from (3.11 or newer; default python3.11, else python3).
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_environment "${BASH_SOURCE[0]}" "The peers" .venv-bench tools/bench-requirements.txt
