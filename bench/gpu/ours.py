"""Our side, in a process of its own: the trainer's sampler, GRPO and pushes on an engine that serves beside it.

`python -m bench.gpu.ours WORK MODEL URL DEVICE FOLDER` prints what it measured as JSON, on its last line.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from bench.gpu.work import TARGETS, Work, list_failures, measure_memory
from server.adapters.probing import probe
from server.domain import Round, Usage
from server.engine.sglang import SGLangEngine
from server.errors import MulliganError
from server.settings import EngineSettings
from trainer.groups import weigh_groups
from trainer.grpo import ReflectionTrainer
from trainer.lora import choose_device, make_probe, open_model
from trainer.memory import take_share
from trainer.promotion import Candidate
from trainer.rollout import Sampler
from trainer.samples import Member
from trainer.settings import TrainerSettings
from trainer.yielding import come_second

SWAPS = 3
T = TypeVar("T")


async def _prove() -> None:
    """Prove that the round is still held: nobody else can hold it here."""


class Loop:
    """The steps as trainer.training takes them, without a database."""

    def __init__(self, work: Work, engine: SGLangEngine, settings: TrainerSettings, model: Any, folder: Path) -> None:
        self.work = work
        self.rows: list[dict[str, float]] = []
        self.candidate = Candidate(model, engine, Round("rd_bench", "bench", 1), folder / "pushes", _prove)
        self.sampler = Sampler(come_second(engine, self._count), settings)
        self._row: dict[str, float] = {}

    def _count(self, usage: Usage) -> None:
        self._row["rollout_tokens"] = self._row.get("rollout_tokens", 0) + usage.completion_tokens

    async def draw(self, failures: list[Any], _number: int) -> list[Member]:
        """Sample a step."""
        if not self.candidate.name:
            await self.candidate.push(0)
        self._row = {}
        members = await self.sampler.sample_step(failures, self.candidate.name)
        kept = weigh_groups(members)
        self._row["trained_tokens"] = sum(len(one.prompt_ids) + len(one.token_ids) for one, _ in kept)
        self._row["trained_sequences"] = len(kept)
        return members

    async def tell(self, number: int, figures: dict[str, float], _changed: bool) -> None:
        """Push the weights, and note what the step took."""
        began = time.monotonic()
        await self.candidate.push(number)
        names = ("rollout_s", "train_s", "logprob_gap", "updates")
        self._row |= {name: figures[name] for name in names if name in figures}
        self.rows.append({**self._row, "push_s": time.monotonic() - began})


async def measure_swaps(candidate: Candidate, engine: SGLangEngine, prompts: list[Any]) -> dict[str, Any]:
    """Push and probe as a promotion does: seconds of each part, the median of a few."""
    began = time.monotonic()
    try:
        expected = await asyncio.to_thread(make_probe, candidate.model, prompts)
    except MulliganError as error:
        return {"probe": str(error)}
    made_s, pushes, probes, gap = time.monotonic() - began, [], [], 0.0
    for number in range(SWAPS):
        began = time.monotonic()
        name = await candidate.push(1000 + number)
        pushed = time.monotonic()
        gap = await probe(engine, name, expected)
        pushes.append(pushed - began)
        probes.append(time.monotonic() - pushed)
    return {
        "make_probe_s": made_s,
        "push_s": statistics.median(pushes),
        "probe_s": statistics.median(probes),
        "swap_s": statistics.median(p + q for p, q in zip(pushes, probes, strict=True)),
        "probe_gap": gap,
    }


async def run(work: Work, model_path: str, url: str, device: str, folder: Path) -> dict[str, Any]:
    """Take the steps, then swap."""
    settings = TrainerSettings(
        steps=work.warm_steps + work.steps,
        step_failures=work.failures,
        group_size=work.group,
        minibatch_sequences=work.failures * work.group,
        microbatch_sequences=work.microbatch,
        logged_share=0.0,
        concurrency=work.concurrency,
        lora_rank=work.lora_rank,
        max_logprob_gap=1e9,  # told, not judged
        max_mismatch_kl=1e9,
        min_entropy_share=0.0,
        skip_gradient_over=0.0,
        device=device,  # pyright: ignore[reportArgumentType]
    )
    before = _gpu_used_mib()
    take_share(EngineSettings(colocate=True).trainer_share, choose_device(settings))
    model, tokenizer = await asyncio.to_thread(open_model, model_path, None, TARGETS, settings)
    failures, event_loop = list_failures(tokenizer, work), asyncio.get_running_loop()
    engine = SGLangEngine(url)
    loop = Loop(work, engine, settings, model, folder)

    def wait(job: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(job, event_loop).result()

    trainer = ReflectionTrainer(
        model,
        tokenizer,
        settings,
        sample=lambda number: wait(loop.draw(failures, number)),
        step_done=lambda number, figures, changed: wait(loop.tell(number, figures, changed)),
        output_dir=folder / "trl",
        on_cpu=choose_device(settings).type == "cpu",
    )
    try:
        await asyncio.to_thread(trainer.run)
        memory = measure_memory()
        swap = await measure_swaps(loop.candidate, engine, [one.prompt_ids for one in failures])
        await loop.candidate.withdraw()
    finally:
        await engine.close()
    return {"steps": loop.rows[work.warm_steps :], "memory": {**memory, **before}, "swap": swap}


def _gpu_used_mib() -> dict[str, float]:
    """Say what is taken of the GPU before this process takes any: the engine's share."""
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"engine_gpu_mib": (total - free) / 2**20}


def main() -> None:
    """Do the work that is named on the command line."""
    work, model, url, device, folder = sys.argv[1:]
    told = asyncio.run(run(Work.load(Path(work)), model, url, device, Path(folder)))
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
