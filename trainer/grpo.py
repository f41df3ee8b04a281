"""GRPO on reflections, on TRL's GRPOTrainer. The only file that touches TRL (experimental there: pinned exactly).

Called by trainer.round, in a thread of its own, and by trainer.following. It samples through the function that it is
given and never talks to an engine or a database itself.

What differs from the method of "Reflect, Retry, Reward" (arXiv 2505.24726) and from stock TRL, and why:
1. Groups without signal (all fresh rewards alike) are left out of the batch instead of diluting the loss, and a
   reflection whose retry got no verdict takes no part (DAPO's dynamic sampling, arXiv 2503.14476).
2. The engine's own logprobs are the behaviour policy, which stock TRL knows with vLLM only. A token's ratio is taken to
   the trainer's logprobs as the step began, and weighed for what the engine differs (trainer.losses).
3. Logged reflections are judged by the fresh members' mean and deviation, but do not enter these: they were written
   by an older policy and some of them were chosen for having been logged. Their ratio is to that policy, clipped.
4. The loss is averaged over one optimiser update, however many forward passes it takes. A step makes as many updates
   as its groups with signal fill. The loss types are TRL's; dr_grpo leaves the deviation out too, as its paper does.
5. The KL is to the base model (the adapter switched off), never to the adapter that the round started from, so it
   does not drift from round to round; its log-ratio is clamped, as single tokens reach 14 nats otherwise.
6. Whole groups meet in an update, sorted by their prompts, and a prompt is read once for all its members (on a CPU).
7. Where memory runs out the update begins again with half as many sequences at once (trainer.memory).
8. Guards end the training early where going on would do harm (trainer.guards).
9. Only where the objective says so, an update's gradient is also that of successful retries as first answers
   (trainer.first_try): a term of its own with figures of its own, never part of `loss`.
10. Several ranks share an update's forward passes out and add their gradients up, once an update, before the norm is
   taken (trainer.ranks). TRL and accelerate know nothing of it: to them each rank trains alone.
"""

import math
import os
from collections import defaultdict
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

from trainer.batches import Batch, join_ids, pack, score_sharing_prompts
from trainer.errors import RoundFailed
from trainer.groups import Weighed, cut_parts
from trainer.guards import Stop
from trainer.losses import Whole, average, choose_denominator, clamp_kl, estimate_mismatch
from trainer.memory import Microbatch
from trainer.ranks import ALONE, Ranks
from trainer.samples import Member
from trainer.settings import TrainerSettings
from trainer.shares import bring_together, compare_weights
from trainer.steps import Sample, StepDone, Steps

Scored = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Logprobs (B, C), entropies (B, C) and TRL's auxiliary loss."""


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
        ranks: Ranks = ALONE,
    ) -> None:
        self.options = settings
        self.steps = Steps(settings, self._draw_members, step_done)
        self.ranks = ranks
        self.microbatch = Microbatch(settings.microbatch_sequences or (32 if on_cpu else 8), ranks)
        self.share_prompts = on_cpu
        self._sample = sample
        self._members: list[Member] = []
        self._proximal: dict[int, torch.Tensor] | None = None
        self._scored: Scored | None = None
        most = settings.step_failures * (settings.group_size + settings.most_logged)
        updates = settings.steps * settings.passes * max(1, -(-most // settings.minibatch_sequences) + 1)
        super().__init__(
            model=model,
            reward_funcs=self._read_rewards,
            args=_trl_config(settings, output_dir, updates=updates, on_cpu=on_cpu),
            # TRL's loop counts rows; what a step holds is drawn by us, so these are placeholders, one an update.
            train_dataset=Dataset.from_dict({"prompt": ["step"] * updates}),
            processing_class=tokenizer,
            rollout_func=self._roll_out,
            callbacks=[_Pace(self)],
        )
        self.remove_callback(PrinterCallback)
        self._metrics["train"] = self.steps.notes

    def run(self) -> None:
        """Train until the steps are used up, or `sample` or a guard says stop. Raises: RoundFailed, RankLost."""
        compare_weights(self.ranks, self._model(), self.steps.number)
        if self.begin_step():
            self.train()

    @property
    def updates(self) -> int:
        """How many optimiser updates were made."""
        return self.steps.updates

    @property
    def steps_taken(self) -> int:
        """The number of the last step."""
        return self.steps.number

    @property
    def stopped(self) -> Stop | None:
        """What ended the training early, if anything did."""
        return self.steps.guards.stopped

    # --- sampling -------------------------------------------------------------------------------------------------

    def _draw_members(self, number: int) -> list[Member] | None:
        """Draw a step's members and show them to TRL, which notes their figures; None where no step is to be taken."""
        members = self._sample(number)
        self._members = members or []
        if members:
            self._generate([str(number)])
        return members

    def _roll_out(self, _prompts: list[str], _trainer: GRPOTrainer) -> dict[str, list]:
        """Be TRL's rollout function: show the step's members."""
        return {
            "prompt_ids": [list(m.prompt_ids) for m in self._members],
            "completion_ids": [list(m.token_ids) for m in self._members],
            "logprobs": [list(m.logprobs) for m in self._members],
        }

    def _read_rewards(self, **_: Any) -> list[float | None]:
        """Be TRL's reward function. TRL wants one, and never calls it: groups are weighed in trainer.groups."""
        return [member.reward for member in self._members]

    def begin_step(self) -> bool:
        """Draw the next step with signal, and score it where later updates will meet changed weights."""
        if not self.steps.draw():
            return False
        self._proximal = None
        if self.options.importance != "none" and self.steps.queued > 1:
            fresh = sorted(
                (one for one in self.steps.kept if not one[0].logged), key=lambda one: len(one[0].prompt_ids)
            )
            rows = len(self.steps.kept)
            scored = self.microbatch.fit(rows, lambda most: self._score_members(fresh, most))  # (N, longest C)
            self.ranks.add_up([scored])
            self._proximal = {id(one): scored[row, : len(one.token_ids)] for row, (one, _) in enumerate(fresh)}
        return True

    def go_on(self) -> bool:
        """After an update: go on to the next one, in this step or the next. False when the training is over."""
        if self.steps.queued and not self.stopped:
            return True
        compare_weights(self.ranks, self._model(), self.steps.number)
        self.steps.finish({"microbatch": self.microbatch.sequences})
        return self.begin_step()

    @torch.no_grad()
    def _score_members(self, fresh: list[Weighed], most: int) -> torch.Tensor:
        """Score our share of the fresh members' tokens with the weights that the step begins with; 0 elsewhere."""
        longest = max(len(one.token_ids) for one, _ in fresh)
        scored = torch.zeros(len(fresh), longest, dtype=torch.float64)
        rows = {id(one): row for row, (one, _) in enumerate(fresh)}
        for part in self._cut(fresh, most):
            batch = self._lay_out(part, fresh)
            logps = self._score(self._model(), batch)[0].cpu()  # (B, C)
            for place, (member, _) in enumerate(part):
                length = len(member.token_ids)
                scored[rows[id(member)], :length] = logps[place, :length].double()
        return scored

    def _cut(self, members: list[Weighed], most: int) -> list[list[Weighed]]:
        """Cut what all ranks work at into forward passes, and take ours."""
        return self.ranks.share_out(cut_parts(members, most, self.ranks.size))

    # --- what TRL calls -------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gather the gradient of the next update; the row that TRL's loader read is a placeholder."""
        del inputs, num_items_in_batch
        model.train()
        update, answers = self.steps.take_update()
        rows = max(len(update), len(answers))
        ours = self.microbatch.fit(rows, lambda most: self._gather_gradient(model, update, answers, most))
        notes = bring_together(self.ranks, model, ours)
        for name, values in notes.items():
            self._metrics["train"][name] += values
        return torch.tensor(notes["loss"][0], dtype=self._loss_dtype(), device=self.accelerator.device)

    def _gather_gradient(
        self, model: Any, update: list[Weighed], answers: list[Weighed], most: int
    ) -> dict[str, list[float]]:
        """Run our share of an update's forward and backward passes of at most `most` members; give its figures.

        It begins from no gradient. `loss` is the reflections' alone: what `answers` add to the gradient is told apart.
        Broken off half-way it leaves no figures behind, so that it can be done again.
        """
        model.zero_grad()
        told, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            total = torch.zeros((), dtype=self._loss_dtype(), device=self.accelerator.device)
            for part in self._cut(update, most):
                with self.compute_loss_context_manager():
                    loss = self._compute_loss(model, self._lay_out(part, update))
                self.accelerator.backward(loss)
                total += loss.detach()
            if answers:
                self._metrics["train"]["first_try_loss"].append(self._distil(model, answers, most))
            self._metrics["train"]["loss"].append(total.item())
            return self._metrics["train"]
        finally:
            self._metrics["train"] = told

    def _distil(self, model: Any, answers: list[Weighed], most: int) -> float:
        """Add the weighed gradient of the answers' mean negative logprob a token; give our share of that mean, in nats.

        Raises: RoundFailed where it is not finite.
        """
        total = 0.0
        for part in self._cut(answers, most):
            batch = self._lay_out(part, answers)
            with self.compute_loss_context_manager():
                logps = self._score(model, batch)[0]  # (B, C)
                loss = -(logps * batch["completion_mask"]).sum() / batch["whole"].tokens
            self.accelerator.backward(self.options.first_try_weight * loss)
            total += loss.item()
        if not math.isfinite(total):
            raise RoundFailed(
                f"the loss of first answers became {total} in step {self.steps.number}; lower learning_rate or "
                "first_try_weight"
            )
        return total

    def _lay_out(self, part: list[Weighed], update: list[Weighed]) -> Batch:
        """Lay out one forward pass of an update, where the model is and as it counts."""
        whole = Whole(sum(len(member.token_ids) for member, _ in update), len(update))
        batch = pack(part, int(self._tokenizer.pad_token_id), whole, self._proximal)  # type: ignore[arg-type]
        device, dtype = self.accelerator.device, self._loss_dtype()
        moved = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in batch.items()}
        return {**moved, "whole": whole}

    def _model(self) -> torch.nn.Module:
        assert self.model is not None
        return self.model

    def _loss_dtype(self) -> torch.dtype:
        return torch.promote_types(next(self._model().parameters()).dtype, torch.float32)

    def _score(self, model: Any, batch: Batch) -> Scored:
        """Score the reflections' tokens (B, C).

        On a CPU each prompt is read once for its whole group, and the LM head never sees it; TRL's own way, which has
        the long vocabularies and the memory of a GPU in mind, scores every position there.
        """
        (input_ids, attention_mask), keep = join_ids(batch), batch["completion_ids"].size(1)
        if not self.share_prompts:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, keep, compute_entropy=True
            )
        logits = score_sharing_prompts(model, input_ids, attention_mask, keep)
        logps = torch.log_softmax(logits.to(self._loss_dtype()), dim=-1)  # (B, C, V)
        chosen = logps.gather(-1, input_ids[:, -keep:].unsqueeze(-1)).squeeze(-1)  # (B, C)
        with torch.no_grad():
            entropy = -(logps.exp() * logps).sum(-1)
        return chosen, entropy, None

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> Scored:  # type: ignore[override]
        """Hand TRL's loss what has been scored already."""
        assert self._scored is not None
        return self._scored

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Compute a forward pass's share of its update's loss: TRL's clipped loss and the clamped KL to the base."""
        options, told = self.options, self._metrics["train"]
        whole, mask = inputs.pop("whole"), inputs["completion_mask"]
        fresh, behaviour = inputs.pop("fresh").unsqueeze(1), inputs.pop("behaviour_logps")  # (B, 1), (B, C)
        self._scored = self._score(model, inputs)
        policy = self._scored[0]  # (B, C)
        self._watch_engine(policy, behaviour, mask * fresh)
        proximal = inputs.pop("proximal_logps", None)
        inputs["old_per_token_logps"], weight = choose_denominator(policy, behaviour, proximal, fresh, options)
        # TRL multiplies each token's loss by its advantage, and takes one for each token as well as one for a member.
        inputs["advantages"] = inputs["advantages"].unsqueeze(1) * weight
        loss = super()._compute_loss(model, inputs)
        if options.loss_type in ("grpo", "dr_grpo"):  # TRL's is the mean over this pass's members
            loss = loss * len(mask) / whole.rows
        if options.kl_beta > 0:
            with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
                base = self._score(model, inputs)[0]
            kl = clamp_kl(base, policy, options.kl_clamp)
            told["kl"].append(((kl * mask).sum() / mask.sum()).item())
            loss = loss + options.kl_beta * average(kl, mask, whole, options)
        if not torch.isfinite(loss):
            raise RoundFailed(
                f"the loss became {loss.item()} in step {self.steps.number}; lower learning_rate, or raise kl_beta"
            )
        return loss

    def _watch_engine(self, policy: torch.Tensor, behaviour: torch.Tensor, mask: torch.Tensor) -> None:
        """Compare the engine's logprobs with ours before the first update of a step, while the weights are the same.

        Raises: RoundFailed where they are far apart: the engine then serves something else than the candidate.
        """
        if self.steps.step_updates > 0 or not mask.any():
            return
        gap = ((policy.detach() - behaviour).abs() * mask).sum() / mask.sum()
        self._metrics["train"]["logprob_gap"].append(gap.item())
        self._metrics["train"]["mismatch_kl"].append(estimate_mismatch(policy, behaviour, mask).item())
        if gap > self.options.max_logprob_gap and self.options.push_every == 1:
            raise RoundFailed(
                f"the engine's logprobs are {gap:.2f} nats a token away from the trainer's in step "
                f"{self.steps.number}: it does not serve the candidate that is trained, or not at this precision"
            )

    def _clip_grad_norm(self, model: Any) -> Any:
        """Scale the update's gradient down to the largest norm that is allowed, and let the guards see what it was."""
        norm: Any = super()._clip_grad_norm(model)
        self.check_gradient(float(norm))
        return norm

    def check_gradient(self, norm: float) -> None:
        """Throw an update's gradient away where the guards say so: the optimiser then leaves weights and moments be.

        Raises: RoundFailed where it is not finite.
        """
        if not math.isfinite(norm):
            raise RoundFailed(
                f"a gradient is not finite in step {self.steps.number}; lower learning_rate, or raise kl_beta"
            )
        if not self.steps.admit_gradient(norm):
            self._model().zero_grad(set_to_none=True)


class _Pace(TrainerCallback):
    """Moves from step to step between optimiser updates, and stops the loop after the last."""

    def __init__(self, trainer: ReflectionTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        del args, state
        if not self._trainer.go_on():
            control.should_training_stop = True


def _trl_config(settings: TrainerSettings, output_dir: Path, *, updates: int, on_cpu: bool) -> GRPOConfig:
    """Say all that TRL and transformers need to know; their own defaults suit neither LoRA nor a CPU."""
    config = GRPOConfig(
        output_dir=str(output_dir),
        per_device_train_batch_size=settings.group_size,
        num_generations=settings.group_size,
        steps_per_generation=1,
        gradient_accumulation_steps=1,  # an update's forward passes are ours
        max_steps=updates,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=settings.adam_beta2,
        weight_decay=0.0,
        max_grad_norm=settings.max_grad_norm,
        loss_type=settings.loss_type,
        epsilon=settings.clip_low,
        epsilon_high=settings.cispo_max_ratio if settings.loss_type == "cispo" else settings.clip_high,
        max_completion_length=settings.dr_grpo_tokens,  # all that TRL's dr_grpo divides by besides the members
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
    config._n_gpu = min(config.n_gpu, 1)  # noqa: SLF001 -- or it would take every visible GPU, by nn.DataParallel
    return config
