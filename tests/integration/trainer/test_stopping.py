"""What ends the training early: guards over gradients and the engine, in the trainer and in a whole round."""

import asyncio
import random
from itertools import pairwise

import pytest
import torch
from typer.testing import CliRunner

from server.cli import app
from server.domain import RoundState
from tests.integration.trainer.test_grpo import SETTINGS, build, make_adapter_model, make_members, score
from tests.integration.trainer.test_round import sit_down
from tests.integration.trainer.tiny import TARGETS, make_model, make_tokenizer
from trainer.groups import weigh_groups
from trainer.grpo import ReflectionTrainer
from trainer.guards import NORMS_NEEDED
from trainer.lora import attach_adapter
from trainer.round import run_round
from trainer.samples import Member
from trainer.settings import TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def read_weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_an_update_that_is_left_out_changes_nothing_and_several_stop(tmp_path):
    """From the ninth step on the gradient is a hundred times as large: the weights stay, and step 11 is the last."""
    model, weights, told = make_adapter_model(), [], []
    settings = SETTINGS.override({"steps": 20, "learning_rate": 1e-3, "importance": "none", "kl_beta": 0.0})

    class Spiked(ReflectionTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs) * (100 if self.steps_taken > NORMS_NEEDED else 1)

    trainer = Spiked(
        model, make_tokenizer(), settings, sample=lambda _: make_members(model, noise=0.0),
        step_done=lambda number, figures, changed: (
            weights.append(read_weights(model)), told.append((number, figures, changed))
        ), output_dir=tmp_path, on_cpu=True,
    )  # fmt: skip
    trainer.run()

    assert [changed for _, _, changed in told] == [True] * 8 + [False] * 3
    assert [figures["skipped"] for _, figures, _ in told] == [0] * 8 + [1] * 3
    assert trainer.updates == 8
    assert trainer.stopped is not None
    assert (trainer.stopped.step, trainer.stopped.guard) == (11, "gradient")
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(weights)]
    assert same == [False] * 7 + [True] * 3
    optimizer = trainer.optimizer
    assert optimizer is not None
    assert {int(state["step"]) for state in optimizer.state.values()} == {8}  # its moments did not move on either


@pytest.mark.parametrize(("noise", "steps"), [(0.5, 3), (0.05, 5)])
def test_an_engine_apart_stops_the_training_and_the_figure_is_its_kl(tmp_path, noise, steps):
    model, told = make_adapter_model(), []
    settings = SETTINGS.override({"steps": 5, "learning_rate": 1e-6, "max_mismatch_kl": 0.02, "mismatch_steps": 3})
    members = make_members(model, noise=noise)
    trainer = build(model, members, tmp_path, settings, ReflectionTrainer, told)
    with torch.no_grad():
        fresh = [member for member, _ in weigh_groups(members) if not member.logged]
        gaps = torch.cat([score(model, member) - torch.tensor(member.logprobs) for member in fresh])
    trainer.run()

    assert len(told) == steps
    assert told[0][1]["mismatch_kl"] == pytest.approx((gaps.exp() - gaps - 1).mean().item(), rel=1e-3)
    assert told[0][1]["logprob_gap"] == pytest.approx(gaps.abs().mean().item(), rel=1e-3)
    stopped = trainer.stopped and (trainer.stopped.step, trainer.stopped.guard)
    assert stopped == ((3, "mismatch") if steps == 3 else None)


@pytest.fixture(scope="module")
def taught() -> dict[str, torch.Tensor]:
    """Weights that mend a fifth of eight problems: after `k k k k` comes 8 k, 8 k + 1, 8 k + 2, 8 k + 3."""
    model, generator = make_model(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        problems = torch.randint(0, 8, (64, 1), generator=generator)
        noise = torch.randint(0, 64, (64, 4), generator=generator)
        answers = torch.where(torch.rand(64, 4, generator=generator) < 0.75, problems * 8 + torch.arange(4), noise)
        logits = model(input_ids=torch.cat([problems.expand(-1, 4), answers], 1)).logits[:, 3:-1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
        optimizer.step()
    return model.state_dict()


@torch.no_grad()
def sample_answers(model, group: int, problem: int) -> list[Member]:
    ids, logprobs = torch.tensor([[problem] * 4] * 8), []
    for _ in range(4):
        spread = torch.log_softmax(model(input_ids=ids, logits_to_keep=1).logits[:, -1], -1)
        tokens = torch.multinomial(spread.exp(), 1)
        logprobs.append(spread.gather(-1, tokens))
        ids = torch.cat([ids, tokens], dim=1)
    wanted = [8 * problem + place for place in range(4)]
    rows = zip(ids[:, 4:].tolist(), torch.cat(logprobs, 1).tolist(), strict=True)
    return [Member(group, [problem] * 4, tokens, scores, float(tokens == wanted)) for tokens, scores in rows]


@pytest.mark.parametrize(("learning_rate", "guard"), [(5e-3, None), (5e-2, "reward")])
def test_a_learning_rate_ten_times_too_high_is_caught(tmp_path, taught, learning_rate, guard):
    """One policy, the same problems: at one rate it learns; at ten times as much it gets worse, and is stopped."""
    base = make_model()
    base.load_state_dict(taught)
    torch.manual_seed(1)
    model, rng, told = attach_adapter(base, TARGETS, SETTINGS), random.Random(1), []
    options = {"steps": 7, "patience": 3, "step_failures": 8, "minibatch_sequences": 32, "lora_rank": 4}
    settings = TrainerSettings().override(options, {"learning_rate": learning_rate})
    trainer = build(model, [], tmp_path, settings, ReflectionTrainer, told)
    trainer._sample = lambda _: [one for group in range(8) for one in sample_answers(model, group, rng.randrange(8))]
    trainer.run()
    rewards = [figures["reward"] for _, figures, _ in told]
    first, last = sum(rewards[:3]) / 3, sum(rewards[3:6]) / 3
    if guard is None:
        assert trainer.stopped is None
        assert last > first + 0.08
    else:
        assert trainer.stopped is not None
        assert (trainer.stopped.step, trainer.stopped.guard) == (6, guard)
        assert last < 0.7 * first  # what the gate would be shown without the guard


async def test_a_round_says_what_stopped_it_and_still_holds_its_gate(monkeypatch, stores, settings, engine, task):
    monkeypatch.setattr("trainer.grpo.estimate_mismatch", lambda *_: torch.tensor(0.5))
    desk = await sit_down(stores, settings, engine, task, steps=4, mismatch_steps=1)
    state, reason = await run_round(desk)
    await stores.rounds.finish(desk.round.id, desk.round.epoch, state, reason)

    assert state in (RoundState.PROMOTED, RoundState.INCONCLUSIVE, RoundState.REGRESSED)
    row = await stores.rounds.get(desk.round.id)
    steps = await stores.rounds.steps(desk.round.id)
    assert row.steps_done == len(steps) < 4
    assert row.report["stopped"]["guard"] == "mismatch"
    assert row.report["stopped"]["step"] == len(steps)
    assert "over max_mismatch_kl = 0.02" in row.report["stopped"]["words"]
    assert row.report["decision"] in ("promoted", "inconclusive", "regressed")
    words = ["round", "show", row.id, "--database-url", settings.database_url]
    shown = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert f"by the mismatch guard after step {len(steps)}: in 1 step running" in shown.output
