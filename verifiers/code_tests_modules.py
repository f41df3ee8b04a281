"""What answers and tests of the kind `code_tests` may import: loaded before they run, for they can open no file.

Imported in isolated workers, where it loads all of it, and read for the list of names alone elsewhere.
"""

import contextlib
import importlib

NAMES = (
    "abc", "array", "ast", "base64", "binascii", "bisect", "builtins", "calendar", "cmath", "codecs", "collections",
    "collections.abc", "colorsys", "contextlib", "contextvars", "copy", "csv", "dataclasses", "datetime", "decimal",
    "difflib", "enum", "errno", "fnmatch", "fractions", "functools", "gc", "graphlib", "hashlib", "heapq", "hmac",
    "html", "inspect", "io", "itertools", "json", "keyword", "locale", "logging", "math", "numbers", "operator", "os",
    "os.path", "pathlib", "pprint", "queue", "random", "re", "secrets", "signal", "statistics", "string", "struct",
    "sys", "textwrap", "threading", "time", "timeit", "tokenize", "traceback", "types", "typing", "unicodedata",
    "unittest", "unittest.mock", "urllib.parse", "uuid", "warnings", "weakref", "zlib", "__future__",
)  # fmt: skip
_LOADED_LATER = (
    "_strptime", "encodings.ascii", "encodings.cp1252", "encodings.hex_codec", "encodings.idna", "encodings.latin_1",
    "encodings.punycode", "encodings.rot_13", "encodings.unicode_escape", "encodings.utf_16", "encodings.utf_16_le",
    "encodings.utf_16_be", "encodings.utf_32", "encodings.utf_8_sig", "unittest.async_case", "linecache",
)  # fmt: skip


def load() -> None:
    """Import every one of them; what this Python lacks is left out."""
    for name in (*NAMES, *_LOADED_LATER):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def may_import(name: str) -> bool:
    """Say whether a module, named with its dots, may be imported."""
    return name in NAMES or any(known.startswith(f"{name}.") for known in NAMES)
