"""The paper's settings as a named preset, a small one to see that everything runs, and what differs from the paper.

What the paper says (arXiv 2505.24726): GRPO by TRL's trainer, the KL to the start weighted by 0.001, up to 64 answers a
query of which the failed ones are kept, one retry, the bare verdict as feedback, loss on the reflection's tokens alone,
15,000 test problems of Countdown and 12,000 of function calling. Where a value of its own was not at hand, TRL's or
ours stands, and `list_deviations` names it: nothing here is guessed to be the paper's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.orchestration.reflection import REFLECT, RETRY

TASKS = ("countdown", "function_call")


@dataclass(frozen=True)
class Preset:
    """Sizes and settings of a run. `test` problems are measured, `training` ones asked before the first round."""

    name: str
    test: Mapping[str, int]
    training: int
    rounds: int
    tries: int  # times that a training problem is asked at most, until it fails
    answer_max_tokens: Mapping[str, int]
    reflection_max_tokens: int
    context_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)  # of the trainer; the gate's are its defaults


_LEARNING = {
    "objective": "reflection",
    "loss_type": "grpo",
    "group_size": 8,  # TRL's default
    "clip_low": 0.2,  # TRL's defaults: as far up as down
    "clip_high": 0.2,
    "kl_beta": 0.001,  # the paper's
    "logged_share": 0.0,  # the paper's: fresh reflections only
}

PRESETS: Mapping[str, Preset] = {
    "paper": Preset(
        name="paper",
        test={"countdown": 15_000, "function_call": 12_000},
        training=10_000,
        rounds=3,
        tries=1,
        answer_max_tokens={"countdown": 1024, "function_call": 512},
        reflection_max_tokens=512,
        context_tokens=4096,
        options=_LEARNING,
    ),
    "small": Preset(
        name="small",
        test={"countdown": 20, "function_call": 20},
        training=40,
        rounds=1,
        tries=1,
        answer_max_tokens={"countdown": 32, "function_call": 96},
        reflection_max_tokens=128,
        context_tokens=1536,
        options={**_LEARNING, "steps": 1, "step_failures": 16, "group_size": 4, "min_failures": 4},
    ),
}


@dataclass(frozen=True)
class Deviation:
    """One thing that is not as in the paper."""

    name: str
    paper: str
    here: str


@dataclass(frozen=True)
class Chosen:
    """What a run was told that bears on how near to the paper it is."""

    preset: Preset
    tasks: tuple[str, ...]
    engine: str
    problems: Mapping[str, int]
    reflect: str | None = None
    retry: str | None = None
    countdown_prompt: str | None = None
    countdown_file: bool = False
    force: bool = False


def list_deviations(chosen: Chosen, options: Mapping[str, Any]) -> list[Deviation]:
    """List by name what differs from the paper in this run; `options` are those of the trainer that are set."""
    found = [
        Deviation("weights", "all are trained", "a LoRA adapter on all linear layers (rank 16 unless lora_rank says)"),
        Deviation("learning_rate", "no source at hand", f"{options.get('learning_rate', 'ours for LoRA, 2e-5')}"),
        Deviation("batch", "no source at hand", "ours: 32 failures a step, 64 reflections an update"),
        Deviation("group_size", "no source at hand", f"{options['group_size']}; TRL's default is 8"),
        Deviation(
            "max_tokens",
            "no source at hand",
            f"answers {_say_tokens(chosen)}, reflections {chosen.preset.reflection_max_tokens}",
        ),
        Deviation("selection", "failures, all alike", "failures that a logged reflection mended come first"),
        Deviation("kl", "0.001 to the start", f"{options['kl_beta']} to the base, its log-ratio clamped at 4"),
        Deviation("importance", "the trainer samples", "the engine samples; tokens are weighed by what they differ by"),
        Deviation("rounds", "one training run", "rounds with a gate; what it does not promote does not serve"),
        Deviation("sampling", "no source at hand", "temperature 1, top_p 1, one answer a problem"),
        Deviation("test_set", "its own split", "drawn here by content, disjoint from what is trained on"),
    ]
    tries = chosen.preset.tries
    if tries != 64:
        found.append(Deviation("failures", "up to 64 answers a query", f"up to {tries}, until one fails (--tries)"))
    if chosen.force:
        found.append(Deviation("promotion", "the last weights", "an inconclusive candidate is promoted by force"))
    if chosen.engine != "sglang":
        found.append(Deviation("engine", "vLLM", f"{chosen.engine}, which is for trying out"))
    else:
        found.append(Deviation("engine", "vLLM", "SGLang"))
    if chosen.reflect is None or chosen.retry is None:
        found.append(Deviation("prompts", "its own wording", "ours, or --reflect and --retry"))
    for task in chosen.tasks:
        full = PRESETS["paper"].test[task]
        if chosen.problems[task] != full:
            found.append(Deviation(f"{task}.problems", f"{full:,}", f"{chosen.problems[task]:,}"))
    if "countdown" in chosen.tasks:
        found += _list_countdown(chosen)
    if "function_call" in chosen.tasks:
        found.append(
            Deviation(
                "function_call.verifier", "equal calls", "equal calls by our rules; calls also have to fit the schemas"
            )
        )
    return found


def _list_countdown(chosen: Chosen) -> list[Deviation]:
    found = [Deviation("countdown.verifier", "TinyZero's, in floats to 1e-5", "exact fractions")]
    if not chosen.countdown_file:
        found.append(
            Deviation("countdown.data", "TinyZero's data set", "drawn as TinyZero does, solvable ones (--countdown)")
        )
    if chosen.countdown_prompt is None:
        found.append(Deviation("countdown.prompt", "its own wording", "ours, or --countdown-prompt"))
    return found


def _say_tokens(chosen: Chosen) -> str:
    return " and ".join(f"{chosen.preset.answer_max_tokens[task]} ({task})" for task in chosen.tasks)


def name_prompts(reflect: str | None, retry: str | None) -> dict[str, str]:
    """Name the wording of the two prompts that a task is made with."""
    return {"reflect": reflect or REFLECT, "retry": retry or RETRY}
