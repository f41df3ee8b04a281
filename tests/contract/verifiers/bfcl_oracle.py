"""Answers for bfcl-eval's own checker: run by the interpreter of .venv-oracles, one JSON object a line in and out.

in:  {"category": ..., "functions": [...], "answer": [{name: arguments}, ...], "truth": [{name: {argument: [...]}}]}
out: {"valid": ..., "why": ...}

The checker imports three modules that it does not need for Python's categories: the table of all models, whose
handlers import every vendor's SDK, is only asked whether dots in names become underscores (here: no), and the
converters of Java and JavaScript literals are never called. They are stood in for; nothing else of it is changed.
"""

import json
import sys
from types import ModuleType, SimpleNamespace


class NoModel(dict):
    def __missing__(self, name):
        return SimpleNamespace(underscore_to_dot=False)


def stand_in(name, **names):
    module = ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module


def never(*_):
    raise NotImplementedError


CONVERTERS = "bfcl_eval.eval_checker.ast_eval.type_convertor"
stand_in("bfcl_eval.constants.model_config", MODEL_CONFIG_MAPPING=NoModel())
stand_in(f"{CONVERTERS}.java_type_converter", java_type_converter=never)
stand_in(f"{CONVERTERS}.js_type_converter", js_type_converter=never)
stand_in("filelock", FileLock=never)  # bfcl_eval.utils locks its files of results with it

from bfcl_eval.constants.enums import Language  # noqa: E402
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # noqa: E402
from bfcl_eval.utils import is_empty_output  # noqa: E402


def judge(case):
    if case["category"] == "irrelevance":
        return {"valid": is_empty_output(case["answer"]), "why": "irrelevance"}
    try:
        found = ast_checker(case["functions"], case["answer"], case["truth"], Language.PYTHON, case["category"], "none")
    except Exception as error:
        return {"valid": None, "why": f"broke: {type(error).__name__}"}
    return {"valid": found["valid"], "why": found.get("error_type", "")}


for line in sys.stdin:
    sys.stdout.write(json.dumps(judge(json.loads(line))) + "\n")
