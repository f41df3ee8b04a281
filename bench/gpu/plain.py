"""The other side, in a process of its own: TRL's GRPOTrainer as it comes, with generation by transformers.

The reflections are its completions; its reward function writes the retries with the same model and judges them.
`python -m bench.gpu.plain WORK MODEL DEVICE FOLDER` prints what it measured as JSON, on its last line.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from bench.gpu.work import PASSES, TARGETS, Work, list_failures, measure_memory
from server.orchestration.reflection import reflection_messages, retry_messages
from trainer.settings import TrainerSettings


class TimedTrainer(GRPOTrainer):
    """TRL's trainer with a clock: what generating and rewarding takes, and the rest."""

    rows: list[dict[str, float]]
    row: dict[str, float]
    began_at: float

    def begin(self) -> None:
        """Start the clock of the first step."""
        self.rows, self.row, self.began_at = [], {}, time.monotonic()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        began = time.monotonic()
        outputs = super()._generate_and_score_completions(inputs)
        _wait_for_device()
        masks = outputs["completion_mask"], outputs["prompt_mask"]
        self.row["rollout_s"] = time.monotonic() - began
        self.row["rollout_tokens"] = self.row.get("rollout_tokens", 0) + int(masks[0].sum())
        self.row["trained_tokens"] = int(masks[0].sum() + masks[1].sum())
        self.row["trained_sequences"] = len(masks[0])
        return outputs

    def count_retries(self, tokens: int) -> None:
        """Count what the reward function generated."""
        self.row["rollout_tokens"] = self.row.get("rollout_tokens", 0) + tokens

    def end_step(self) -> None:
        """Close a step: what was not generating was training."""
        _wait_for_device()
        now = time.monotonic()
        self.rows.append({**self.row, "train_s": now - self.began_at - self.row["rollout_s"]})
        self.row, self.began_at = {}, now


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run(work: Work, model_path: str, device: str, folder: Path) -> dict[str, Any]:
    """Take the steps."""
    ours = TrainerSettings()
    half = device == "cuda"
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16 if half else torch.float32)
    failures = list_failures(tokenizer, work)
    asked = {one.messages[0]["content"]: one for one in failures}

    @torch.no_grad()
    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
        told = []
        for prompt, completion in zip(prompts, completions, strict=True):
            failure = asked[prompt[0]["content"]]
            text = completion[0]["content"]
            told.append(retry_messages(failure.messages, failure.failed, text, failure.prompts, None))
        batch = tokenizer.apply_chat_template(
            told, add_generation_prompt=True, tokenize=True, padding=True, return_dict=True, return_tensors="pt"
        ).to(trainer.accelerator.device)
        policy = trainer.accelerator.unwrap_model(trainer.model)
        answers = policy.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=work.retry_tokens
        )[:, batch["input_ids"].size(1) :]
        trainer.count_retries(int((answers != tokenizer.pad_token_id).sum()))
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [float(re.search(PASSES, text) is not None) for text in texts]

    sequences = work.failures * work.group
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=work.microbatch,
        gradient_accumulation_steps=sequences // work.microbatch,
        steps_per_generation=sequences // work.microbatch,
        num_generations=work.group,
        max_completion_length=work.reflection_tokens,
        max_steps=work.warm_steps + work.steps,
        learning_rate=ours.learning_rate,
        lr_scheduler_type="constant",
        loss_type="dapo",
        epsilon=ours.clip_low,
        epsilon_high=ours.clip_high,
        beta=ours.kl_beta,
        temperature=1.0,
        use_cpu=device == "cpu",
        bf16=half,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        shuffle_dataset=False,
        seed=0,
    )
    lora = LoraConfig(r=work.lora_rank, lora_alpha=ours.lora_alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    rows = [{"prompt": reflection_messages(one.messages, (), one.failed, one.prompts)} for one in failures]
    trainer = TimedTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows * (work.warm_steps + work.steps)),
        processing_class=tokenizer,
        peft_config=lora,
    )
    from transformers import TrainerCallback  # noqa: PLC0415

    class EachStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            trainer.end_step()

    trainer.add_callback(EachStep())
    trainer.begin()
    trainer.train()
    return {"steps": trainer.rows[work.warm_steps :], "memory": measure_memory()}


def main() -> None:
    """Do the work that is named on the command line."""
    work, model, device, folder = sys.argv[1:]
    told = run(Work.load(Path(work)), model, device, Path(folder))
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
