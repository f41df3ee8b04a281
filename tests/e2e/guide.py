"""Runs the snippets of a page of the docs in their order, as its reader would.

A fenced block is told by its first line. With a language and a file's name it is written to that file; `sh` and
`python` are run in the reader's folder (`sh exit=1` has to end with that status); the `text` after one has to be what
it printed, where `...` stands for anything. Other blocks are only shown.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.harness import environment

_BLOCK = re.compile(r"^```(?P<language>\w+)(?: (?P<rest>[^\n]+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    rest: str
    text: str


def read_blocks(page: str) -> list[Block]:
    return [
        Block(page.count("\n", 0, found.start()) + 1, found["language"], found["rest"] or "", found["text"])
        for found in _BLOCK.finditer(page)
    ]


def run_page(path: Path, folder: Path, *, origin: str, key: str, timeout_s: float = 120) -> int:
    """Run a page's snippets in `folder`, with the server at `origin`; return how many were run."""
    commands = folder / ".bin"
    commands.mkdir()
    _write_command(commands / "mulligan", f'exec {sys.executable} -m server.cli "$@"')
    _write_command(commands / "python", f'exec {sys.executable} "$@"')
    variables = environment(KEY=key, PATH=f"{commands}:{os.environ['PATH']}", COLUMNS="200", NO_COLOR="1")
    printed, ran = "", 0
    for block in read_blocks(path.read_text()):
        text, where = block.text.replace("http://127.0.0.1:8000", origin), f"{path.name}, line {block.line}"
        if block.language == "text":
            assert _matches(text, printed), f"{where}: the page says\n{text}\nbut it printed\n{printed}"
        elif block.rest and "=" not in block.rest:
            (folder / block.rest).write_text(text)
        elif block.language in ("sh", "python"):
            command = (
                ["bash", "-euo", "pipefail", "-c", text] if block.language == "sh" else [sys.executable, "-c", text]
            )
            done = subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False
            )
            printed, ran = done.stdout + done.stderr, ran + 1
            expected = int(block.rest.partition("=")[2] or 0)
            assert done.returncode == expected, f"{where}: exit status {done.returncode}, not {expected}:\n{printed}"
    return ran


def _write_command(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def _matches(expected: str, printed: str) -> bool:
    """Say whether what was printed is what is expected, but for white space, where `...` stands for anything."""
    parts = [re.escape(" ".join(part.split())) for part in expected.split("...")]
    return re.fullmatch(".*".join(parts), " ".join(printed.split()), re.DOTALL) is not None
