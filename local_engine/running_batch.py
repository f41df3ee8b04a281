"""The sequences that decode together on one model: they join after their prompts are computed, and leave when they end.

Used by the decoding thread alone. One step is one forward pass for all rows and one draw for all rows; what is done
row by row in Python is an append and a few comparisons.
"""

import uuid
from collections.abc import Sequence as Many

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from local_engine.kv_rows import KvRows, Window
from local_engine.models import Base
from local_engine.prefixes import BLOCK_TOKENS, PrefixStore, block_keys
from local_engine.sampling import SamplingPlan
from local_engine.sequences import Finish, Sequence
from local_engine.text import find_stop

_PREFILL_TOKENS = 8192  # padded prompt tokens in one forward pass


class RunningBatch:
    """All sequences of one adapter (or of the plain base)."""

    def __init__(self, base: Base, model: PreTrainedModel, prefixes: PrefixStore) -> None:
        self._base = base
        self._backbone = model.base_model
        head = model.get_output_embeddings()
        assert head is not None, "a causal language model has a head"
        self._head = head
        self._kv: KvRows = base.make_rows()
        self._prefixes = prefixes
        self._salt = uuid.uuid4().bytes
        self.sequences: list[Sequence] = []  # in the order of their rows
        self._left: list[Sequence] = []  # ended, and not given back yet
        self._plan: SamplingPlan | None = None  # of `sequences`; None after rows joined or left

    def join(self, waiting: list[Sequence]) -> list[Sequence]:
        """Compute the prompts of all these, draw their first tokens, and give back those that ended with it.

        Prompts that share a beginning are computed one after the other, so that the later ones find it done.
        """
        while waiting:
            wave, waiting = self._choose_wave(waiting)
            self._prefill(wave)
        return self._give_back()

    def step(self) -> list[Sequence]:
        """Draw one token for every row, and give back the sequences that ended."""
        ended = [sequence for sequence in self.sequences if sequence.aborted]
        for sequence in ended:
            sequence.finish = Finish("abort")
        self._leave(ended)
        if not self.sequences:
            return self._give_back()
        count = len(self.sequences)
        device = self._base.device
        # A row's last token has been drawn, but its keys and values are not written yet.
        positions_N = torch.tensor([sequence.length - 1 for sequence in self.sequences], device=device)
        tokens_N = torch.tensor([sequence.tokens[-1] for sequence in self.sequences], device=device)
        self._kv.fit(count, int(positions_N.max()) + 1, count)
        hidden_N1D = self._forward(tokens_N[:, None], Window.of(self._kv, 0, positions_N[:, None]))
        if self._plan is None:
            self._plan = self._make_plan(self.sequences)
        self._leave(self._draw(self.sequences, hidden_N1D[:, 0], self._plan))
        return self._give_back()

    def fail(self, message: str, waiting: list[Sequence]) -> list[Sequence]:
        """End all sequences, those that wait to join too, begin anew without rows, and give back what ended."""
        ended = list(dict.fromkeys([*self._give_back(), *self.sequences, *waiting]))
        for sequence in ended:
            sequence.finish = sequence.finish or Finish("error", message)
        self.sequences, self._plan, self._kv = [], None, self._base.make_rows()
        return ended

    def _choose_wave(self, waiting: list[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
        wave: list[Sequence] = []
        later: list[Sequence] = []
        claimed: set[bytes] = set()  # prefixes that this wave is about to compute
        longest = 0
        for sequence in waiting:
            # At least one prompt token has to be computed, for the logits that follow it.
            keys = block_keys(sequence.prompt[:-1], self._salt)
            cached, _ = self._prefixes.find(keys)
            missing = keys[cached // BLOCK_TOKENS :]
            longest_with = max(longest, len(sequence.prompt) - cached)
            full = bool(wave) and longest_with * (len(wave) + 1) > _PREFILL_TOKENS
            if full or (missing and missing[0] in claimed):
                later.append(sequence)
                continue
            wave.append(sequence)
            claimed.update(missing)
            longest = longest_with
        return wave, later

    def _prefill(self, wave: list[Sequence]) -> None:
        first, device = len(self.sequences), self._base.device
        found = [self._prefixes.find(block_keys(sequence.prompt[:-1], self._salt)) for sequence in wave]
        rests = [sequence.prompt[cached:] for sequence, (cached, _) in zip(wave, found, strict=True)]
        width = max(len(rest) for rest in rests)
        # The rows that run already count too: room that is given back must not be theirs.
        longest = max([max(cached for cached, _ in found) + width, *(running.length for running in self.sequences)])
        self._kv.fit(first + len(wave), longest, first)
        for row, (sequence, (cached, prefix)) in enumerate(zip(wave, found, strict=True), start=first):
            sequence.cached_tokens = cached
            if prefix is not None:
                self._kv.copy_in(row, prefix, cached)
        # Padded on the right: no real token sees what follows it, and decoding overwrites what the padding wrote.
        ids_BS = torch.tensor([rest + [0] * (width - len(rest)) for rest in rests], device=device)
        starts_B1 = torch.tensor([[cached] for cached, _ in found], device=device)
        positions_BS = starts_B1 + torch.arange(width, device=device)
        hidden_BSD = self._forward(ids_BS, Window.of(self._kv, first, positions_BS))
        last_B = torch.tensor([len(rest) - 1 for rest in rests], device=device)
        hidden_BD = hidden_BSD[torch.arange(len(wave), device=device), last_B]
        self.sequences += wave
        self._plan = None
        for row, sequence in enumerate(wave, start=first):
            self._remember(row, sequence.prompt)
        self._leave(self._draw(wave, hidden_BD, self._make_plan(wave)))

    def _forward(self, ids_BS: torch.Tensor, window: Window) -> torch.Tensor:
        output = self._backbone(input_ids=ids_BS, position_ids=window.positions_BS, use_cache=False, window=window)
        return output.last_hidden_state

    def _make_plan(self, sequences: Many[Sequence]) -> SamplingPlan:
        return SamplingPlan(
            [sequence.sampling for sequence in sequences],
            [sequence.randomness for sequence in sequences],
            self._base.eos_ids,
            self._base.device,
            grammars=[sequence.grammar for sequence in sequences],
        )

    def _draw(self, sequences: list[Sequence], hidden_ND: torch.Tensor, plan: SamplingPlan) -> list[Sequence]:
        """Append one token to each of these, and give back those that it ended."""
        logits_NV = self._head(hidden_ND)
        tokens_N, logprobs_NV = plan.draw(logits_NV, [(sequence.prompt, sequence.tokens) for sequence in sequences])
        chosen = logprobs_NV.gather(1, tokens_N[:, None])[:, 0].tolist()
        ended = []
        for row, (sequence, token, logprob) in enumerate(zip(sequences, tokens_N.tolist(), chosen, strict=True)):
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
            if sequence.top_logprobs:
                values, ids = logprobs_NV[row].topk(sequence.top_logprobs)
                values.clamp_(min=torch.finfo(values.dtype).min)  # JSON has no infinity; SGLang does the same
                sequence.tops.append(list(zip(values.tolist(), ids.tolist(), strict=True)))
            if sequence.grammar is not None:
                sequence.grammar.accept(token)
            finish = find_finish(sequence, token, self._base.eos_ids, self._base.tokenizer)
            if finish is not None:
                sequence.finish = finish
                ended.append(sequence)
        return ended

    def _leave(self, ended: list[Sequence]) -> None:
        for sequence in ended:
            row, last = self.sequences.index(sequence), len(self.sequences) - 1
            self._remember(row, (sequence.prompt + sequence.tokens)[:-1])
            if row != last:
                moved = self.sequences[last]
                self._kv.move(last, row, moved.length)
                self.sequences[row] = moved
            self.sequences.pop()
            self._left.append(sequence)
            self._plan = None
        if not self.sequences:
            self._kv = self._base.make_rows()  # an adapter that nobody asks holds no memory for rows

    def _give_back(self) -> list[Sequence]:
        given, self._left = self._left, []
        return given

    def _remember(self, row: int, tokens: list[int]) -> None:
        keys = block_keys(tokens, self._salt)
        if keys and not self._prefixes.holds(keys[-1]):
            self._prefixes.keep(keys, self._kv.copy_out(row, len(keys) * BLOCK_TOKENS))


def find_finish(
    sequence: Sequence, token: int, eos_ids: frozenset[int], tokenizer: PreTrainedTokenizerBase
) -> Finish | None:
    """Say whether this token, appended already, ends the sequence, and why."""
    sampling, grammar = sequence.sampling, sequence.grammar
    if grammar is not None and grammar.failure is not None:
        return Finish("error", grammar.failure)
    ends = token in eos_ids and (not sampling.ignore_eos or (grammar is not None and grammar.complete))
    if ends or (not sampling.ignore_eos and token in sampling.stop_token_ids):
        return Finish("stop", token)
    if sampling.stop:
        matched = find_stop(tokenizer, sequence.tokens, sampling)
        if matched is not None:
            return Finish("stop", matched)
    if len(sequence.tokens) >= sequence.limit:
        return Finish("length")
    return None
