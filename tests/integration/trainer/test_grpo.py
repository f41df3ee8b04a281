"""GRPO on TRL: the loss and its gradient against a hand-written reference, and that it learns."""

import random
from dataclasses import replace

import pytest
import torch

from tests.integration.trainer.tiny import TARGETS, make_model, make_tokenizer
from trainer.errors import RoundFailed
from trainer.groups import weigh_groups
from trainer.grpo import ReflectionTrainer
from trainer.lora import attach_adapter
from trainer.samples import Member
from trainer.settings import TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SETTINGS = TrainerSettings(
    steps=1, step_failures=4, group_size=4, minibatch_sequences=64, microbatch_sequences=22, lora_rank=4, lora_alpha=8,
    max_grad_norm=1e9, kl_beta=0.1, kl_clamp=0.3, max_logprob_gap=100.0,
)  # fmt: skip


def make_adapter_model(*, double: bool = False, seed: int = 0):
    model = attach_adapter(make_model(seed=seed), TARGETS, SETTINGS)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # a fresh adapter's B is zero, and then A has no gradient
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.double() if double else model


def score(model, member: Member) -> torch.Tensor:
    """Logprobs (T,) of one reflection, without padding, batch or any of our code."""
    ids = torch.tensor([[*member.prompt_ids, *member.token_ids]])
    logits = model(input_ids=ids).logits[0, :-1]
    chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0]
    return chosen[len(member.prompt_ids) - 1 :]


def make_members(model, *, noise: float = 0.4) -> list[Member]:
    """Three groups of unlike lengths: signal, none, and signal with an abstention and a logged member."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    rewards = [[1, 0, 0, 1], [1, 1, 1, 1], [1, None, 0, 0]]
    members = []
    for group, group_rewards in enumerate(rewards):
        prompt = [rng.randrange(256) for _ in range(5 + 7 * group)]
        for reward in [*group_rewards, 1]:
            tokens = [rng.randrange(256) for _ in range(rng.randrange(2, 12))]
            member = Member(group, prompt, tokens, [], None if reward is None else float(reward))
            with torch.no_grad():
                drift = noise * torch.randn(len(tokens), generator=generator, dtype=torch.float64)
                member = replace(member, logprobs=(score(model, member).double() + drift).tolist())
            members.append(member)
        members[-1] = replace(members[-1], logged=True)
    return members


def compute_reference_loss(model, members: list[Member], settings: TrainerSettings) -> torch.Tensor:
    """PPO-clip over tokens (dapo) plus the clamped KL to the base, one sequence at a time."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for group in {member.group for member in members}:
        ours = [member for member in members if member.group == group and member.reward is not None]
        fresh = torch.tensor([member.reward for member in ours if not member.logged], dtype=torch.float64)
        if fresh.std() == 0:
            continue
        for member in ours:
            advantage = (member.reward - fresh.mean()) / (fresh.std() + 1e-4)
            policy, behaviour = score(model, member), torch.tensor(member.logprobs, dtype=torch.float64)
            ratio = torch.exp(policy - behaviour)
            clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
            loss = -torch.minimum(ratio * advantage, clipped * advantage)
            with torch.no_grad(), model.disable_adapter():
                base = score(model, member)
            gap = (base - policy).clamp(-settings.kl_clamp, settings.kl_clamp)
            total = total + (loss + settings.kl_beta * (gap.exp() - gap - 1)).sum()
            tokens += len(member.token_ids)
    return total / tokens


class Watched(ReflectionTrainer):
    """Keeps the loss and the gradients of each update, and what reaches the LM head."""

    def check_gradients(self) -> None:
        super().check_gradients()
        self.seen = {n: p.grad.clone() for n, p in self._model().named_parameters() if p.grad is not None}
        self.losses = list(self._metrics["train"]["loss"])

    def _compute_loss(self, model, inputs):
        head = model.get_output_embeddings()
        caught = []
        hook = head.register_forward_hook(lambda _module, _args, out: caught.append(out))
        loss = super()._compute_loss(model, dict(inputs))
        hook.remove()
        prompts, reflections = [out for out in caught if out.requires_grad]
        gradients = torch.autograd.grad(loss, [prompts, reflections], retain_graph=True, allow_unused=True)
        self.__dict__.setdefault("logit_gradients", []).append((*gradients, inputs["completion_mask"].bool()))
        return loss


def build(model, members, tmp_path, settings=SETTINGS, cls=Watched, told=None):
    return cls(
        model,
        make_tokenizer(),
        settings,
        sample=lambda _step: members,
        step_done=lambda number, figures, changed: (
            told.append((number, figures, changed)) if told is not None else None
        ),
        output_dir=tmp_path,
        on_cpu=True,
    )


@pytest.mark.parametrize("microbatch", [64, 22, 5])
def test_loss_and_gradient_match_the_reference(tmp_path, microbatch):
    model = make_adapter_model(double=True)
    settings = SETTINGS.override({"microbatch_sequences": microbatch})
    members = make_members(model)
    loss = compute_reference_loss(model, members, settings)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))

    trainer = build(model, members, tmp_path, settings)
    trainer.run()

    assert trainer.updates == 1
    told = sum(trainer.losses) / trainer._parts
    assert told == pytest.approx(loss.item(), abs=1e-8)
    assert set(trainer.seen) == set(wanted)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        # Llama's norms compute in float32 whatever the model's type is: rounding there is all that may differ.
        torch.testing.assert_close(trainer.seen[name], gradient, rtol=1e-6, atol=1e-7)


def test_the_way_of_gpus_scores_the_same(tmp_path):
    """TRL's own scoring, which GPUs keep, gives the gradient of ours: it computes in float32."""
    gradients = []
    for shared in (True, False):
        model = make_adapter_model()
        trainer = build(model, make_members(model), tmp_path)
        trainer.share_prompts = shared
        trainer._compute_loss = lambda model, inputs, trainer=trainer: ReflectionTrainer._compute_loss(
            trainer, model, inputs
        )
        trainer.run()
        gradients.append(trainer.seen)
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_no_token_outside_a_reflection_gets_gradient(tmp_path):
    model = make_adapter_model(double=True)
    trainer = build(model, make_members(model), tmp_path, SETTINGS.override({"microbatch_sequences": 64}))
    trainer.run()
    ((prompts, reflections, mask),) = trainer.logit_gradients
    assert prompts is None  # what is foretold inside a prompt takes no part in the loss at all
    assert reflections.shape[:2] == mask.shape
    assert (~mask).any()
    assert bool((reflections[~mask] == 0).all())
    assert (reflections[mask].abs().sum(-1) > 0).double().mean() > 0.5  # clipped tokens have none


def test_clipping_is_active_in_the_reference_case():
    model = make_adapter_model(double=True)
    members = [member for member, _ in weigh_groups(make_members(model))]
    ratios = torch.cat([torch.exp(score(model, m) - torch.tensor(m.logprobs, dtype=torch.float64)) for m in members])
    assert ((ratios < 0.8) | (ratios > 1.28)).double().mean() > 0.1


def test_a_step_without_signal_makes_no_update(tmp_path):
    model = make_adapter_model()
    members = [replace(member, reward=1.0) for member in make_members(model)]
    told: list = []
    trainer = build(model, members, tmp_path, SETTINGS.override({"steps": 2}), ReflectionTrainer, told)
    trainer.run()
    assert trainer.updates == 0
    assert [(number, changed) for number, _, changed in told] == [(1, False), (2, False)]
    assert told[0][1]["groups_kept"] == 0


def test_no_step_is_begun_past_the_time_limit(tmp_path):
    model = make_adapter_model()
    members = make_members(model)
    told: list = []
    settings = SETTINGS.override({"steps": 500, "train_max_s": 0.2})
    build(model, members, tmp_path, settings, ReflectionTrainer, told).run()
    assert 1 <= len(told) < 100


def test_a_loss_that_is_not_finite_ends_the_round(tmp_path):
    model = make_adapter_model()
    members = [replace(member, logprobs=[float("nan")] * len(member.token_ids)) for member in make_members(model)]
    with pytest.raises(RoundFailed, match=r"loss became nan in step 1; lower learning_rate"):
        build(model, members, tmp_path, cls=ReflectionTrainer).run()


def test_an_engine_that_serves_something_else_ends_the_round(tmp_path):
    model = make_adapter_model()
    members = make_members(make_adapter_model(seed=3))
    settings = SETTINGS.override({"max_logprob_gap": 0.5})
    with pytest.raises(RoundFailed, match="nats a token away from the trainer's in step 1"):
        build(model, members, tmp_path, settings, ReflectionTrainer).run()


def test_a_gradient_that_is_not_finite_ends_the_round(tmp_path):
    model = make_adapter_model()
    trainer = build(model, make_members(model), tmp_path, cls=ReflectionTrainer)
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(RoundFailed, match="a gradient is not finite in step 1"):
        trainer.run()


@torch.no_grad()
def sample_group(model, group: int, prompt: list[int], size: int) -> list[Member]:
    """Reflections of four tokens; one that holds a low token is rewarded."""
    ids, logprobs = torch.tensor([prompt] * size), []
    for _ in range(4):
        spread = torch.log_softmax(model(input_ids=ids, logits_to_keep=1).logits[:, -1], -1)
        tokens = torch.multinomial(spread.exp(), 1)
        logprobs.append(spread.gather(-1, tokens))
        ids = torch.cat([ids, tokens], dim=1)
    rows = zip(ids[:, len(prompt) :].tolist(), torch.cat(logprobs, 1).tolist(), strict=True)
    return [Member(group, prompt, tokens, scores, float(min(tokens) < 40)) for tokens, scores in rows]


def test_it_learns_what_is_rewarded(tmp_path):
    model = make_adapter_model()
    rng = random.Random(0)
    rewards: list[float] = []
    gaps: list[float] = []
    settings = SETTINGS.override(
        {"steps": 25, "group_size": 8, "learning_rate": 5e-2, "kl_beta": 0.0, "microbatch_sequences": 64}
    )
    trainer = ReflectionTrainer(
        model,
        make_tokenizer(),
        settings,
        sample=lambda _step: [
            member
            for group in range(6)
            for member in sample_group(model, group, [rng.randrange(256) for _ in range(4)], 8)
        ],
        step_done=lambda _n, figures, _c: (
            rewards.append(figures["reward"]),
            gaps.append(figures.get("logprob_gap", 0.0)),
        ),
        output_dir=tmp_path,
        on_cpu=True,
    )
    trainer.run()
    assert len(rewards) == 25
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.25, rewards
    assert max(gaps) < 1e-4  # the sampler's logprobs are the trainer's own
