"""GRPO on reflections, on TRL's GRPOTrainer. The only file that touches TRL (experimental there: pinned exactly).

Called by trainer.round, in a thread of its own. It samples through the function that it is given and never talks to
an engine or a database itself.

What differs from the method of "Reflect, Retry, Reward" (arXiv 2505.24726) and from stock TRL, and why:
1. Groups without signal (all fresh rewards alike) are left out of the batch instead of diluting the loss, and a
   reflection whose retry got no verdict takes no part (DAPO's dynamic sampling, arXiv 2503.14476).
2. The ratio's denominator is the sampler's own logprob of each token. Stock TRL uses them with vLLM only.
3. Logged reflections are judged by the fresh members' mean and deviation, but do not enter these: they were written
   by an older policy and some of them were chosen for having been logged.
4. The loss is summed over the tokens of one optimiser update and divided by their number (dapo), clipped at
   1 - 0.2 and 1 + 0.28. A step makes as many updates as its groups with signal fill.
5. The KL is to the base model (the adapter switched off), never to the adapter that the round started from, so it
   does not drift from round to round; its log-ratio is clamped, as single tokens reach 14 nats otherwise.
6. Whole groups meet in an update, sorted by their prompts, and a prompt is read once for all its members (on a CPU).
"""

import os
import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from trainer.batches import Batch, pack, score_sharing_prompts
from trainer.errors import RoundFailed
from trainer.groups import Weighed, cut_updates, describe_groups, weigh_groups
from trainer.samples import Member
from trainer.settings import TrainerSettings

Sample = Callable[[int], list[Member]]
"""Draws the groups of one step, by its number from 1, under the current candidate."""

StepDone = Callable[[int, dict[str, float], bool], None]
"""Told after each step: its number, its figures, and whether the weights changed."""


class ReflectionTrainer(GRPOTrainer):
    """TRL's trainer, fed step by step: sample, drop what has no signal, update, tell, until the steps are used up."""

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainerSettings,
        *,
        sample: Sample,
        step_done: StepDone,
        output_dir: Path,
        on_cpu: bool,
    ) -> None:
        self.options = settings
        self.share_prompts = on_cpu
        microbatch = settings.microbatch_sequences or (32 if on_cpu else 8)
        self._parts = -(-settings.minibatch_sequences // microbatch)
        self._sample, self._step_done = sample, step_done
        self._queue: deque[Batch] = deque()
        self._rng = random.Random(settings.seed)
        self._number = 0  # of the step
        self._deadline = float("inf")
        self._members: list[Member] = []
        self._figures: dict[str, float] = {}
        self._gaps: list[float] = []
        self._step_updates = 0
        self.updates = 0  # of all steps
        self._step_started = 0.0
        self._update_started = 0.0
        most = settings.step_failures * (settings.group_size + settings.logged_per_group)
        updates = settings.steps * settings.passes * max(1, -(-most // settings.minibatch_sequences) + 1)
        super().__init__(
            model=model,
            reward_funcs=self._read_rewards,
            args=_trl_config(settings, output_dir, updates=updates, parts=self._parts, on_cpu=on_cpu),
            # TRL's loop counts rows; what a step holds is drawn by us, so these are placeholders, one a forward pass.
            train_dataset=Dataset.from_dict({"prompt": ["step"] * (updates * self._parts)}),
            processing_class=tokenizer,
            rollout_func=self._roll_out,
            callbacks=[_Pace(self)],
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Train until the steps, the failures or the seconds are used up. Raises: RoundFailed."""
        if self.options.train_max_s is not None:
            self._deadline = time.monotonic() + self.options.train_max_s
        if self.draw_step():
            self.train()

    # --- sampling -------------------------------------------------------------------------------------------------

    def _roll_out(self, prompts: list[str], _trainer: GRPOTrainer) -> dict[str, list]:
        """Be TRL's rollout function: draw the step's members."""
        self._members = self._sample(int(prompts[0]))
        return {
            "prompt_ids": [list(m.prompt_ids) for m in self._members],
            "completion_ids": [list(m.token_ids) for m in self._members],
            "logprobs": [list(m.logprobs) for m in self._members],
        }

    def _read_rewards(self, **_: Any) -> list[float | None]:
        """Be TRL's reward function. TRL wants one, and never calls it: groups are weighed in trainer.groups."""
        return [member.reward for member in self._members]

    def draw_step(self) -> bool:
        """Sample until a step has signal and queue its forward passes. False when there are no steps left."""
        while self._number < self.options.steps and time.monotonic() < self._deadline:
            self._number += 1
            self._step_started = time.monotonic()
            self._metrics["train"].clear()
            self._gaps.clear()
            self._step_updates = 0
            self._generate([str(self._number)])
            kept = weigh_groups(self._members)
            self._figures = describe_groups(self._members, kept)
            self._figures["rollout_s"] = time.monotonic() - self._step_started
            self._update_started = time.monotonic()
            if kept:
                self._queue_updates(kept)
                return True
            self.finish_step()
        return False

    def _queue_updates(self, kept: list[Weighed]) -> None:
        for _ in range(self.options.passes):
            for update in cut_updates(kept, self.options.minibatch_sequences, self._parts, self._rng):
                tokens = sum(len(member.token_ids) for part in update for member, _ in part)
                spare = next(one for part in update for one in part)
                pad_id = int(self._tokenizer.pad_token_id)  # type: ignore[arg-type]
                self._queue.extend(pack(part, pad_id, tokens, self._parts, spare) for part in update)

    def finish_step(self) -> None:
        """Tell the figures of the step that is over."""
        figures = dict(self._figures)
        for name, values in self._metrics["train"].items():
            finite = [v for v in values if v == v]  # noqa: PLR0124 (not a number)
            if finite and name in _TOLD:
                figures[_TOLD[name]] = sum(finite) / len(finite)
        if self._gaps:
            figures["logprob_gap"] = sum(self._gaps) / len(self._gaps)
        figures["updates"] = self._step_updates
        figures["train_s"] = time.monotonic() - self._update_started
        self._step_done(self._number, figures, self._step_updates > 0)

    @property
    def steps_taken(self) -> int:
        """The number of the last step."""
        return self._number

    @property
    def has_passes_left(self) -> bool:
        """Whether the step's forward passes are not all done."""
        return bool(self._queue)

    def count_update(self) -> None:
        """Note that an optimiser update was made."""
        self._step_updates += 1
        self.updates += 1

    # --- what TRL calls -------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        """Hand out the next forward pass; the row that TRL's loader read is a placeholder."""
        del generation_batch
        batch = self._queue.popleft()
        device, dtype = self.accelerator.device, self._loss_dtype()
        return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in batch.items()}

    def _model(self) -> torch.nn.Module:
        assert self.model is not None
        return self.model

    def _loss_dtype(self) -> torch.dtype:
        return torch.promote_types(next(self._model().parameters()).dtype, torch.float32)

    def _get_per_token_logps_and_entropies(  # type: ignore[override]
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Score the last `logits_to_keep` tokens (B, C).

        On a CPU each prompt is read once for its whole group, and the LM head never sees it; TRL's own way, which has
        the long vocabularies and the memory of a GPU in mind, scores every position there.
        """
        if not self.share_prompts:
            scored = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **more
            )
        else:
            logits = score_sharing_prompts(model, input_ids, attention_mask, logits_to_keep)
            logps = torch.log_softmax(logits.to(self._loss_dtype()), dim=-1)  # (B, C, V)
            chosen = logps.gather(-1, input_ids[:, -logits_to_keep:].unsqueeze(-1)).squeeze(-1)  # (B, C)
            with torch.no_grad():
                entropy = -(logps.exp() * logps).sum(-1)
            scored = (chosen, entropy, None)
        self._scored = scored[0]
        return scored

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Add the clamped KL to the base model to TRL's clipped loss, and watch what the numbers say."""
        fresh = inputs.pop("fresh")
        loss = super()._compute_loss(model, inputs)
        policy = self._scored  # (B, C), as TRL's loss has just used it
        mask = inputs["completion_mask"]  # (B, C)
        self._watch_gap(policy, inputs["old_per_token_logps"], mask * fresh.unsqueeze(1))
        if self.options.kl_beta > 0:
            kl = self._kl_to_base(model, inputs, policy, mask)
            update_tokens = inputs["num_items_in_batch"] * self._parts
            self._metrics["train"]["kl"].append((kl.sum() / mask.sum().clamp(min=1)).item())
            loss = loss + self.options.kl_beta * kl.sum() / update_tokens
        if not torch.isfinite(loss):
            raise RoundFailed(
                f"the loss became {loss.item()} in step {self._number}; lower learning_rate, or raise kl_beta"
            )
        self._metrics["train"]["loss"].append(loss.item() * self._parts)
        return loss

    def _kl_to_base(self, model: Any, inputs: Batch, policy: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Estimate the KL of each token (B, C) to the base model, the log-ratio clamped."""
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
            base, _, _ = self._get_per_token_logps_and_entropies(model, input_ids, attention, policy.size(1))
        ratio = (base - policy).clamp(-self.options.kl_clamp, self.options.kl_clamp)
        return (torch.exp(ratio) - ratio - 1) * mask

    def _watch_gap(self, policy: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor) -> None:
        """Compare the engine's logprobs with ours before the first update of a step, while the weights are the same.

        Raises: RoundFailed where they are far apart: the engine then serves something else than the candidate.
        """
        if self._step_updates > 0 or not mask.any():
            return
        gap = ((policy.detach() - behaviour).abs() * mask).sum() / mask.sum()
        self._gaps.append(gap.item())
        if gap > self.options.max_logprob_gap and self.options.push_every == 1:
            raise RoundFailed(
                f"the engine's logprobs are {gap:.2f} nats a token away from the trainer's in step {self._number}: "
                "it does not serve the candidate that is trained, or serves it at another precision"
            )

    def check_gradients(self) -> None:
        """Raise RoundFailed where a gradient is not finite, before the optimiser uses it."""
        for parameter in self._model().parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise RoundFailed(
                    f"a gradient is not finite in step {self._number}; lower learning_rate, or raise kl_beta"
                )


class _Pace(TrainerCallback):
    """Moves from step to step between optimiser updates, and stops the loop after the last."""

    def __init__(self, trainer: ReflectionTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        del args, state, control
        self._trainer.check_gradients()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state
        self._trainer.count_update()
        if self._trainer.has_passes_left:
            return
        self._trainer.finish_step()
        if not self._trainer.draw_step():
            control.should_training_stop = True


_TOLD = {
    "loss": "loss",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
    "completions/mean_length": "reflection_tokens",
    "completions/clipped_ratio": "truncated",
}
"""TRL's names of the figures that a step tells, and ours."""


def _trl_config(settings: TrainerSettings, output_dir: Path, *, updates: int, parts: int, on_cpu: bool) -> GRPOConfig:
    """Say all that TRL and transformers need to know; their own defaults suit neither LoRA nor a CPU."""
    return GRPOConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=settings.group_size,
        num_generations=settings.group_size,
        steps_per_generation=1,
        gradient_accumulation_steps=parts,
        max_steps=updates,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=settings.adam_beta2,
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        loss_type="dapo",
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        beta=0.0,  # TRL's reference would be a copy of the adapter that the round started from
        temperature=1.0,
        use_cpu=on_cpu,
        bf16=False,
        fp16=False,
        activation_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=settings.seed,
    )
