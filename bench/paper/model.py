"""Looks at the model before anything is started, so that what cannot work says so in a second and not after minutes."""

import json
from collections.abc import Sequence
from pathlib import Path

from bench.paper.problems import BadInput

_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def check_model(model: str, tasks: Sequence[str]) -> None:
    """Check that a folder or Hugging Face id has a chat template, and one that shows tools where these are called.

    Raises: BadInput that says what is missing and what to do.
    """
    template = _read_folder(Path(model)) if Path(model).is_dir() else _read_by_id(model)
    if not template:
        raise BadInput(
            f"--model {model} has no chat template: take the -Instruct variant of it, or put a "
            "chat_template.jinja into its folder"
        )
    if "function_call" in tasks and "tools" not in template:
        raise BadInput(
            f"--model {model}: its chat template never shows `tools`, so the model could not know them: take another "
            "model, or --task countdown"
        )


def longest_context(model: str) -> int | None:
    """Return how many tokens the model's positions reach, None where its folder does not say."""
    try:
        config = json.loads((Path(model) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config.get("max_position_embeddings")


def _read_folder(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise BadInput(f"--model {folder} is a folder without a config.json: name one with a Hugging Face model in it")
    for name in _TEMPLATE_FILES:
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"--model {folder} has no tokenizer_config.json: it is not a whole Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"--model {folder}: its tokenizer_config.json cannot be read: {error}") from None
    return _join(settings.get("chat_template"))


def _read_by_id(model: str) -> str:
    if model.startswith((".", "/", "~")):
        raise BadInput(f"--model {model}: there is no such folder")
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds, and a folder does not need it

    try:
        return _join(AutoTokenizer.from_pretrained(model).chat_template)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"--model {model} is neither a folder nor a model that can be fetched: {first}") from None


def _join(template: object) -> str:
    """Join the templates of a model that has several, by name."""
    if isinstance(template, list | dict):
        return json.dumps(template)
    return template if isinstance(template, str) else ""
