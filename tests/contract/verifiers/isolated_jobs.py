"""Jobs that isolated workers run in tests. Imported in the worker; `test_isolation.py` names them."""

import os
import socket
import subprocess
import time
from pathlib import Path

seen = []


def echo(value):
    return value


def count(_value):
    seen.append(1)
    return len(seen)


def tell_pid(_value):
    return os.getpid()


def sleep(seconds):
    time.sleep(seconds)
    return "slept"


def spin(_value):
    while True:
        pass


def eat(_value):
    kept = []
    while True:
        kept.append(bytearray(2**24))


def recurse(value):
    return recurse(value)


def end(status):
    os._exit(status)


def give_much(characters):
    return "x" * characters


def give_odd(_value):
    return {1, 2}


def print_much(_value):
    print("x" * 2**20, flush=True)
    os.write(1, b"\0\0\0\2{}")
    return "printed"


def read_environment(_value):
    return [dict(os.environ), str(Path.cwd()), os.read(0, 1).decode()]


def connect(port):
    socket.create_connection(("127.0.0.1", port), 1).close()
    return "connected"


def write_file(path):
    Path(path).write_text("x")
    return "written"


def make_folder(path):
    Path(path).mkdir()
    return "made"


def append_file(path):
    with Path(path).open("a") as file:
        file.write("x")
    return "written"


def remove_file(path):
    Path(path).unlink()
    return "removed"


def read_file(path):
    return Path(path).read_text()


def run_program(_value):
    return subprocess.run(["true"], check=True).returncode


def fork(_value):
    return os.fork()


def kill(pid):
    os.kill(pid, 9)
    return "killed"
