"""What the answers have to agree with: transformers' and PEFT's own forward pass in float32."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class Reference:
    """The tiny model, computed without any engine; `adapter` is a folder."""

    def __init__(self, model: Path) -> None:
        self._path = model
        self._models: dict[str, Any] = {}
        self.tokenizer = AutoTokenizer.from_pretrained(model)

    def render(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None = None) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def logprobs(
        self, prompt: Sequence[int], tokens: Sequence[int], *, adapter: str = "", temperature: float = 1.0
    ) -> list[float]:
        logits = self._model(adapter)(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0].float()
        rows = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)
        return rows.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()

    @torch.no_grad()
    def likeliest(self, prompt: Sequence[int], tokens: Sequence[int], *, adapter: str = "") -> list[int]:
        """Say what a greedy answer would have instead of each of these tokens, after those before it."""
        logits = self._model(adapter)(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
        return logits[len(prompt) - 1 : -1].argmax(-1).tolist()

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _model(self, adapter: str) -> Any:
        torch.set_num_threads(1)  # more would only wait for each other on such tiny matrices
        if adapter not in self._models:
            base = AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32)
            self._models[adapter] = PeftModel.from_pretrained(base, adapter).eval() if adapter else base.eval()
        return self._models[adapter]
