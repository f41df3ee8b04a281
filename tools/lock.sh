#!/usr/bin/env bash
# Writes requirements.lock: every version that pyproject.toml (with its extras) resolves to, in a fresh environment.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip="$scratch/venv/bin/pip --disable-pip-version-check"
$pip install -q torch==2.13.0   # first, so that nothing else picks a newer one
$pip install -q ".[dev,otel]"
{
  echo "# Made by tools/lock.sh from pyproject.toml. Do not edit."
  $pip freeze --exclude mulligan | grep -v '^-e\|@ file' | sed 's/+cpu$//'
} > requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
