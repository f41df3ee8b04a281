#!/usr/bin/env bash
# Install the peers of the gateway benchmark (sglang-router, LiteLLM, the clients of the plain proxies) into an
# environment of their own, .venv-bench at the repository root: their pins differ from ours.
#
#   tools/bench-peers.sh           install, or do nothing where this list has been installed already
#   FORCE=1 tools/bench-peers.sh   install again from nothing
#
# PYTHON names the interpreter that the environment is made from (3.11 or newer; default python3.11, else python3).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv-bench
list=$root/tools/bench-requirements.txt
stamp=$venv/installed.sha256
wanted=$(cat "${BASH_SOURCE[0]}" "$list" | sha256sum | cut -d' ' -f1)

if [ -z "${FORCE:-}" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  echo "The peers are installed in $venv"
  exit 0
fi

base_python=${PYTHON:-$(command -v python3.11 || command -v python3)}
echo "making $venv with $("$base_python" --version) (a minute or two)"
rm -rf "$venv"
"$base_python" -m venv "$venv"
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input -r "$list"
echo "$wanted" >"$stamp"
echo "The peers are installed in $venv"
