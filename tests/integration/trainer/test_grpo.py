"""GRPO on TRL: the loss and its gradient against a hand-written reference, and that it learns."""

import random
from dataclasses import replace

import pytest
import torch

from tests.integration.trainer.tiny import TARGETS, make_model, make_tokenizer
from trainer.errors import RoundFailed
from trainer.groups import weigh_groups
from trainer.grpo import ReflectionTrainer, _trl_config
from trainer.lora import attach_adapter
from trainer.samples import Member
from trainer.settings import TrainerSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SETTINGS = TrainerSettings(
    steps=1, step_failures=4, group_size=4, minibatch_sequences=64, microbatch_sequences=22, lora_rank=4, lora_alpha=8,
    max_grad_norm=1e9, kl_beta=0.1, kl_clamp=0.3, max_logprob_gap=100.0, importance_cap=1.3, dr_grpo_tokens=16,
)  # fmt: skip
LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "cispo")


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


def compute_reference_loss(
    model, members: list[Member], settings: TrainerSettings, proximal: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """The loss of one update, one sequence at a time, as the papers write it. `proximal`: each member's, at the start.

    dapo: arXiv 2503.14476, equation 8 (mean over all tokens, clipped higher above than below). grpo: arXiv 2402.03300,
    equation 3 (mean over each member's tokens, then over members). dr_grpo: arXiv 2503.20783 (no deviation, a constant
    length). cispo: arXiv 2506.13585, equation 4 (the cut ratio is a weight, and has no gradient).
    """
    sums, lengths = [], []
    for group in {member.group for member in members}:
        numbered = [
            (i, member) for i, member in enumerate(members) if member.group == group and member.reward is not None
        ]
        fresh = torch.tensor([member.reward for _, member in numbered if not member.logged], dtype=torch.float64)
        if fresh.std() == 0:
            continue
        scale = 1.0 if settings.loss_type == "dr_grpo" else fresh.std() + 1e-4
        for i, member in numbered:
            advantage = (member.reward - fresh.mean()) / scale
            policy, behaviour = score(model, member), torch.tensor(member.logprobs, dtype=torch.float64)
            own = policy.detach() if proximal is None else proximal[i]
            weight = torch.ones_like(own)
            if settings.importance == "truncated" and not member.logged:
                weight = torch.exp(own - behaviour).clamp(max=settings.importance_cap)
                behaviour = own
            ratio = torch.exp(policy - behaviour)
            if settings.loss_type == "cispo":
                loss = -ratio.clamp(max=settings.cispo_max_ratio).detach() * advantage * policy
            else:
                clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
                loss = -torch.minimum(ratio * advantage, clipped * advantage)
            with torch.no_grad(), model.disable_adapter():
                base = score(model, member)
            gap = (base - policy).clamp(-settings.kl_clamp, settings.kl_clamp)
            sums.append((loss * weight + settings.kl_beta * (gap.exp() - gap - 1)).sum())
            lengths.append(len(member.token_ids))
    if settings.loss_type == "grpo":
        return torch.stack([one / length for one, length in zip(sums, lengths, strict=True)]).mean()
    if settings.loss_type == "dr_grpo":
        return torch.stack(sums).mean() / settings.dr_grpo_tokens
    return torch.stack(sums).sum() / sum(lengths)


def find_gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def assert_gradients_match(seen: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(seen) == set(wanted)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0
        # Llama's norms compute in float32 whatever the model's type is: rounding there is all that may differ.
        torch.testing.assert_close(seen[name], gradient, rtol=1e-6, atol=1e-7)


class Watched(ReflectionTrainer):
    """Keeps the loss and the gradients of each update, and what reaches the LM head."""

    def check_gradient(self, norm: float) -> None:
        self.seen = {n: p.grad.clone() for n, p in self._model().named_parameters() if p.grad is not None}
        weights = {n: p.detach().clone() for n, p in self._model().named_parameters() if p.requires_grad}
        self.__dict__.setdefault("history", []).append((weights, self.seen))
        self.losses = list(self._metrics["train"]["loss"])
        super().check_gradient(norm)

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


@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": kind, "importance": "none", "microbatch_sequences": 22} for kind in LOSS_TYPES),
        *({"loss_type": kind, "importance": "truncated", "microbatch_sequences": 5} for kind in LOSS_TYPES),
        {"kl_beta": 0.0},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_loss_and_gradient_match_the_reference(tmp_path, options):
    model = make_adapter_model(double=True)
    settings = SETTINGS.override(options)
    members = make_members(model)
    loss = compute_reference_loss(model, members, settings)
    wanted = find_gradients(model, loss)

    trainer = build(model, members, tmp_path, settings)
    trainer.run()

    assert trainer.updates == 1
    assert trainer.losses == pytest.approx([loss.item()], abs=1e-8)
    assert_gradients_match(trainer.seen, wanted)


def test_the_options_under_test_tell_losses_apart():
    """Each option that the reference is compared under changes the loss, so that a lost one would show."""
    model = make_adapter_model(double=True)
    members = make_members(model)
    unlike = [{}, {"kl_beta": 0.0}, {"importance": "none"}, {"kl_clamp": 9.0}]
    losses = [
        compute_reference_loss(model, members, SETTINGS.override({"loss_type": kind, **options})).item()
        for kind in LOSS_TYPES
        for options in unlike
    ]
    assert len({round(loss, 6) for loss in losses}) == len(losses)


@pytest.mark.parametrize(("kind", "importance"), [("dapo", "none"), ("dapo", "truncated"), ("cispo", "truncated")])
def test_later_updates_of_a_step_keep_its_first_logprobs(tmp_path, kind, importance):
    """With two passes the second meets changed weights: its ratio is to the logprobs that the step began with."""
    model = make_adapter_model(double=True)
    settings = SETTINGS.override({"loss_type": kind, "importance": importance, "passes": 2, "learning_rate": 1e-2})
    members = make_members(model)
    with torch.no_grad():
        start = [score(model, member) for member in members]
    trainer = build(model, members, tmp_path, settings)
    trainer.run()

    assert trainer.updates == len(trainer.history) == 2
    for weights, seen in trainer.history:
        model.load_state_dict(weights, strict=False)
        assert_gradients_match(seen, find_gradients(model, compute_reference_loss(model, members, settings, start)))
    with torch.no_grad():
        moved = [torch.exp(score(model, member) - first) for member, first in zip(members, start, strict=True)]
    assert max((ratio - 1).abs().max() for ratio in moved) > settings.clip_high  # of the second pass


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


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_no_token_outside_a_reflection_gets_gradient(tmp_path, kind):
    model = make_adapter_model(double=True)
    settings = SETTINGS.override({"microbatch_sequences": 64, "loss_type": kind})
    trainer = build(model, make_members(model), tmp_path, settings)
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


def test_no_step_is_taken_once_there_are_to_be_no_more(tmp_path):
    model = make_adapter_model()
    members = make_members(model)
    told: list = []
    trainer = build(model, members, tmp_path, SETTINGS.override({"steps": 500}), ReflectionTrainer, told)
    trainer._sample = {1: members, 2: []}.get  # a step may have nothing, too
    trainer.run()
    assert [(number, changed) for number, _, changed in told] == [(1, True), (2, False)]
    assert (trainer.steps_taken, trainer.updates) == (2, 1)


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


def test_one_process_takes_one_gpu_of_several(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _trl_config(SETTINGS, tmp_path, updates=1, on_cpu=False).n_gpu == 1  # transformers would wrap DataParallel
