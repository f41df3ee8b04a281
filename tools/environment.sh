# Sourced by scripts that install a list of packages into an environment of its own at the repository root.

# install_environment SCRIPT WHAT VENV LIST [PIP OPTION ...]: make VENV from LIST, or do nothing where this very SCRIPT and
# LIST made it already. FORCE=1 begins from nothing; PYTHON names the interpreter (default python3.11, else python3).
install_environment() {
  local script=$1 what=$2 root base_python wanted venv list
  root=$(cd "$(dirname "$script")/.." && pwd)
  venv=$root/$3 list=$root/$4
  shift 4
  wanted=$(cat "$script" "$root/tools/environment.sh" "$list" | sha256sum | cut -d' ' -f1)
  if [ -n "${FORCE:-}" ] || [ "$(cat "$venv/installed.sha256" 2>/dev/null)" != "$wanted" ]; then
    base_python=${PYTHON:-$(command -v python3.11 || command -v python3)}
    echo "making $venv with $("$base_python" --version)"
    rm -rf "$venv"
    "$base_python" -m venv "$venv"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-input "$@" -r "$list"
    echo "$wanted" >"$venv/installed.sha256"
  fi
  echo "$what are installed in $venv"
}
