"""From tokens to text: whole answers, text as it grows, and where a stop string or a mark begins.

Called by the decoding thread (stop strings) and by the endpoints; keeps nothing between requests.
"""

from collections.abc import Sequence as Many

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from local_engine.sampling import Sampling
from local_engine.sequences import Sequence

_INCOMPLETE = "\ufffd"  # what a character becomes whose last bytes are still to come


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Many[int], *, skip_special_tokens: bool) -> str:
    """Turn tokens into text, as they are: no spaces are cleaned up."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def find_stop(tokenizer: PreTrainedTokenizerBase, tokens: Many[int], sampling: Sampling) -> str | None:
    """Say which stop string the last token completed. Only as many tokens are decoded as could take part."""
    reach = max(len(stop.encode()) for stop in sampling.stop) + 1  # a token is at least a byte
    tail = decode(tokenizer, tokens[-reach:], skip_special_tokens=sampling.skip_special_tokens)
    return next((stop for stop in sampling.stop if stop in tail), None)


def final_text(tokenizer: PreTrainedTokenizerBase, sequence: Sequence) -> str:
    """Turn a finished sequence into its answer: without the token or the string that stopped it."""
    tokens, sampling, finish = sequence.tokens, sequence.sampling, sequence.finish
    matched = finish.matched if finish else None
    if isinstance(matched, int) and not sampling.no_stop_trim:
        tokens = tokens[:-1]
    text = decode(tokenizer, tokens, skip_special_tokens=sampling.skip_special_tokens)
    if isinstance(matched, str) and not sampling.no_stop_trim:
        place = text.find(matched)
        text = text[:place] if place >= 0 else text
    return text


class GrowingText:
    """The text of tokens that arrive one by one: whole characters only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._tokens: list[int] = []
        self._context = 0  # a token's text can depend on the one before it: decode from here
        self._shown = 0  # tokens whose text was given out

    def push(self, tokens: Many[int]) -> str:
        """Add tokens, and give back the text that they complete."""
        self._tokens += tokens
        before = self._decode(self._tokens[self._context : self._shown])
        text = self._decode(self._tokens[self._context :])
        if text.endswith(_INCOMPLETE):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return text[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return decode(self._tokenizer, tokens, skip_special_tokens=self._skip_special_tokens)


class HeldText:
    """Text that is held back where a mark may be beginning, until it is known whether it does."""

    def __init__(self, marks: Many[str]) -> None:
        self._marks = [mark for mark in marks if mark]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text, and give back what cannot belong to a mark. Once a mark was found, nothing comes out any more."""
        self._held += text
        if self.found:
            return ""
        places = [place for mark in self._marks if (place := self._held.find(mark)) >= 0]
        self.found = bool(places)
        safe = min(places) if places else len(self._held) - self._beginning()
        out, self._held = self._held[:safe], self._held[safe:]
        return out

    def _beginning(self) -> int:
        """Say how many of the last characters could begin a mark."""
        longest = max((len(mark) for mark in self._marks), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(mark.startswith(self._held[-length:]) for mark in self._marks):
                return length
        return 0


class TokenTexts:
    """What single tokens look like, for log-probabilities: their text and their bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        byte_level = "ByteLevel" in type(getattr(backend, "decoder", None)).__name__
        self._bytes_of_chars = {char: byte for byte, char in bytes_to_unicode().items()} if byte_level else {}
        self._added = {token.content for token in tokenizer.added_tokens_decoder.values()}

    def text(self, token: int) -> str:
        """Give a token's own text."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = decode(self._tokenizer, [token], skip_special_tokens=False)
        return text

    def bytes(self, token: int) -> list[int]:
        """Give a token's bytes: a part of a character has bytes but no text."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if self._bytes_of_chars and isinstance(piece, str) and piece not in self._added:
            found = [self._bytes_of_chars.get(char) for char in piece]
            if None not in found:
                return [byte for byte in found if byte is not None]
        return list(self.text(token).encode())
