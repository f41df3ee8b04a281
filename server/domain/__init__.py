"""The things that the server talks about: plain dataclasses, no I/O. Every room may import this one.

Each file holds what changes together; whoever needs a thing imports it from here.

Times are Unix seconds (`*_at`) or durations (`*_s`, `*_ms`). Ids are prefixed strings (`ep_...`, `rd_...`), made here.
"""

from server.domain.adapters import Adapter, AdapterStatus, Promotion
from server.domain.audits import JudgedAttempt
from server.domain.canaries import Canary, CanaryCell, CanaryPolicy, CanaryState, CanaryStep
from server.domain.checks import Check, CheckState
from server.domain.episodes import Attempt, Episode, Feedback, LoggedVerdict, Outcome, Reflection, Usage
from server.domain.events import Event
from server.domain.keys import DEFAULT_SCOPES, ApiKey, KeyLimits, Role, Scope
from server.domain.names import BASE_ADAPTER, DEFAULT_POOL, DEFAULT_TASK, new_id
from server.domain.panels import Panel, PanelResult
from server.domain.rounds import Rollout, Round, RoundState, Step, TrainerPresence
from server.domain.tasks import RetryPolicy, Task, TaskProgress, TrainingPolicy, VerifyMode
from server.domain.verifiers import (
    Backtest,
    BacktestState,
    Binding,
    BindingMode,
    TaskVerifier,
    VerdictCount,
    VerifierVersion,
)

__all__ = [
    "BASE_ADAPTER",
    "DEFAULT_POOL",
    "DEFAULT_SCOPES",
    "DEFAULT_TASK",
    "Adapter",
    "AdapterStatus",
    "ApiKey",
    "Attempt",
    "Backtest",
    "BacktestState",
    "Binding",
    "BindingMode",
    "Canary",
    "CanaryCell",
    "CanaryPolicy",
    "CanaryState",
    "CanaryStep",
    "Check",
    "CheckState",
    "Episode",
    "Event",
    "Feedback",
    "JudgedAttempt",
    "KeyLimits",
    "LoggedVerdict",
    "Outcome",
    "Panel",
    "PanelResult",
    "Promotion",
    "Reflection",
    "RetryPolicy",
    "Role",
    "Rollout",
    "Round",
    "RoundState",
    "Scope",
    "Step",
    "Task",
    "TaskProgress",
    "TaskVerifier",
    "TrainerPresence",
    "TrainingPolicy",
    "Usage",
    "VerdictCount",
    "VerifierVersion",
    "VerifyMode",
    "new_id",
]
