"""The objective `reflection+first_try`: its gradient against a reference, and what a round tells of it."""

import asyncio
import json
import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from server.cli import app
from tests.integration.trainer.test_grpo import (
    SETTINGS,
    assert_gradients_match,
    build,
    compute_reference_loss,
    find_gradients,
    make_adapter_model,
    make_members,
    sample_group,
    score,
)
from tests.integration.trainer.test_round import decide, sit_down
from trainer.errors import RoundFailed
from trainer.first_try import pick_answers
from trainer.grpo import ReflectionTrainer
from trainer.round import run_round
from trainer.samples import Member

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BOTH = {"objective": "reflection+first_try", "first_try_weight": 0.3}


def make_retried(model) -> list[Member]:
    """The members of test_grpo with retries: of unlike lengths, two alike, and with prompts of their own."""
    rng, retried = random.Random(4), []
    prompts = [[rng.randrange(256) for _ in range(3 + 4 * group)] for group in range(3)]
    for number, member in enumerate(make_members(model)):
        retry = [rng.randrange(256) for _ in range(1 + number % 5)]
        retried.append(
            replace(member, first_prompt_ids=prompts[member.group], retry_ids=retry if member.reward else [])
        )
    retried[6] = replace(retried[6], retry_ids=retried[5].retry_ids)  # the same answer to the same prompt again
    return retried


def compute_first_try_loss(model, members: list[Member]) -> torch.Tensor:
    """Cross-entropy a token of every distinct successful retry behind its first prompt, one sequence at a time."""
    wanted = {
        (tuple(one.first_prompt_ids), tuple(one.retry_ids)) for one in members if one.reward == 1 and not one.logged
    }
    logps = [score(model, Member(0, prompt, tokens, [], None)) for prompt, tokens in sorted(wanted)]
    return -torch.cat(logps).mean()


@pytest.mark.parametrize("options", [{"microbatch_sequences": 22}, {"microbatch_sequences": 2, "loss_type": "grpo"}])
def test_loss_and_gradient_match_the_reference(tmp_path, options):
    model = make_adapter_model(double=True)
    settings, told = SETTINGS.override(BOTH, options), []
    members = make_retried(model)
    reflection, first_try = compute_reference_loss(model, members, settings), compute_first_try_loss(model, members)
    wanted = find_gradients(model, reflection + 0.3 * first_try)

    trainer = build(model, members, tmp_path, settings, told=told)
    trainer.run()

    assert_gradients_match(trainer.seen, wanted)
    ((_, figures, _),) = told
    assert figures["loss"] == pytest.approx(reflection.item(), abs=1e-8)  # the reflections' alone
    assert figures["first_try_loss"] == pytest.approx(first_try.item(), abs=1e-6)
    answers = pick_answers(members)
    assert figures["first_try_answers"] == len(answers) == 2 + 3 + 1  # group 1 has no signal, and successes
    assert figures["first_try_tokens"] == sum(len(answer.token_ids) for answer, _ in answers)


def test_off_it_changes_nothing(tmp_path):
    seen = []
    for make in (make_members, make_retried):
        model, told = make_adapter_model(), []
        trainer = build(model, make(model), tmp_path, told=told)
        trainer.run()
        seen.append((trainer.losses, trainer.seen))
        assert not [name for name in told[0][1] if name.startswith("first_try")]
    (loss, gradients), (other_loss, other_gradients) = seen
    assert loss == other_loss
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


def test_it_raises_the_chance_of_the_answer_that_passed(tmp_path):
    """The same failures with and without it: only with it does the first prompt lead to the retry's answer."""
    prompts = [[11, 12, 13], [21, 22, 23]]
    answers = [[31, 32, 33, 258], [41, 42, 258]]
    gains = []
    for options in (BOTH, {}):
        torch.manual_seed(0)
        model = make_adapter_model()

        def sample(_step, model=model):
            drawn = [one for group in (0, 1) for one in sample_group(model, group, [group, 5, 6, 7], 8)]
            return [
                replace(one, first_prompt_ids=prompts[one.group], retry_ids=answers[one.group] if one.reward else [])
                for one in drawn
            ]

        def answer_logprob(model=model):
            with torch.no_grad():
                pairs = zip(prompts, answers, strict=True)
                return sum(score(model, Member(0, *pair, [], None)).sum().item() for pair in pairs)

        before = answer_logprob()
        settings = SETTINGS.override({"steps": 10, "group_size": 8, "learning_rate": 1e-2, "kl_beta": 0.0}, options)
        trainer = build(model, [], tmp_path, settings, ReflectionTrainer)
        trainer._sample = sample
        trainer.run()
        assert trainer.updates > 5
        gains.append(answer_logprob() - before)
    assert gains[0] > gains[1] + 5.0  # nats over seven tokens


def test_a_first_try_loss_that_is_not_finite_ends_the_round(tmp_path, monkeypatch):
    model = make_adapter_model()
    trainer = build(model, make_retried(model), tmp_path, SETTINGS.override(BOTH), ReflectionTrainer)
    compute = trainer._score

    def spoil_answers(model, batch):
        logps, *others = compute(model, batch)
        return (logps / batch["advantages"].any(), *others)

    monkeypatch.setattr(trainer, "_score", spoil_answers)
    with pytest.raises(RoundFailed, match=r"the loss of first answers became .* first_try_weight"):
        trainer.run()


async def test_a_round_distils_what_the_engine_sampled_and_says_so(monkeypatch, stores, settings, engine, task):
    decide(monkeypatch, "inconclusive")
    desk = await sit_down(stores, settings, engine, task, **BOTH)
    state, reason = await run_round(desk)
    await stores.rounds.finish(desk.round.id, desk.round.epoch, state, reason)

    tokenizer = AutoTokenizer.from_pretrained(settings.engine.model)
    kept = [one for step in (1, 2) for one in await stores.rollouts.replay(desk.round.id, step)]
    retried = [one for one in kept if one.retry_ids]
    assert retried
    assert all(one.verdict == "passed" and one.first_prompt_ids for one in retried)
    for one in retried:
        assert tokenizer.decode(one.retry_ids, skip_special_tokens=True) == one.retry["content"]
        episode = await stores.episodes.get(one.episode_id)
        rendered = tokenizer.apply_chat_template(
            episode.request["messages"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert list(one.first_prompt_ids) == rendered
    steps = [step.metrics for step in await stores.rounds.steps(desk.round.id) if step.metrics["updates"]]
    assert steps
    assert all(step["first_try_tokens"] > 0 and step["first_try_loss"] > 0 for step in steps)

    row = await stores.rounds.get(desk.round.id)
    assert row.report["objective"] == {"name": "reflection+first_try", "first_try_weight": 0.3}
    words = "reflection+first_try (successful retries distilled into first answers, weight 0.3)"
    where = ["--database-url", settings.database_url]
    for command in (["round", "show", row.id], ["adapters", "show", "letters@1"], ["lineage", "letters@1"]):
        shown = await asyncio.to_thread(CliRunner().invoke, app, [*command, *where], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, shown.output
        assert words in shown.output, command
    shown = await asyncio.to_thread(CliRunner().invoke, app, ["adapters", "show", "letters@1", "--json", *where])
    assert json.loads(shown.output)["objective"]["name"] == "reflection+first_try"

    after = await sit_down(stores, settings, engine, task, steps=1)  # goes on from those weights, without it
    await run_round(after)
    row = await stores.rounds.get(after.round.id)
    assert row.report["objective"] == {"name": "reflection", "before": ["reflection+first_try"]}
    assert not [one for one in await stores.rollouts.replay(row.id, 1) if one.retry_ids or one.first_prompt_ids]
