"""How many tokens of a caption a base model's text encoder reads.

Counted with the base model's own tokenizer where it is on disk and the package `tokenizers` is there, which the engine
brings with it; estimated otherwise. An estimate is always called one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZERS = ("tokenizer_2/tokenizer.json", "tokenizer/tokenizer.json")
"""Where a folder in diffusers layout has the tokenizer of the encoder that reads most; FLUX's second is its T5."""

LEAST_READ = 75
"""Tokens of a caption that every base model reads: CLIP's 77 without its marks."""

_PIECES = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")

_LETTERS_A_TOKEN = 7
"""Words up to this many letters are one token in most vocabularies; longer ones a token for about each five letters."""


@dataclass(frozen=True)
class TextLimit:
    """What a base model's text encoder reads of a caption.

    Attributes:
        base_model: Its name, for what is said.
        tokens: Read at most, with what the family puts around a caption.
        around: How many of them are not the caption's.
        tokenizer: File of its tokenizer, if it is on disk.
    """

    base_model: str
    tokens: int
    around: int = 0
    tokenizer: Path | None = None

    @property
    def for_caption(self) -> int:
        return self.tokens - self.around

    @property
    def is_counted(self) -> bool:
        """Whether tokens are counted and not estimated."""
        return self._tokenizer is not None

    def count(self, caption: str) -> int:
        """Tokens of a caption alone."""
        if self._tokenizer is None:
            return estimate(caption)
        return len(self._tokenizer.encode(caption, add_special_tokens=False).ids)

    def lost(self, caption: str) -> str:
        """What of a caption is not read; empty where all is, or where it is not known."""
        if self._tokenizer is None:
            return ""
        offsets = self._tokenizer.encode(caption, add_special_tokens=False).offsets
        return caption[offsets[self.for_caption][0] :].strip() if len(offsets) > self.for_caption else ""

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self.tokenizer is None:
            return None
        try:
            from tokenizers import Tokenizer

            text = self.tokenizer.read_text(encoding="utf-8")
            json.loads(text)  # What is no JSON, as a file that was cut off, is told apart before the library sees it.
            tokenizer = Tokenizer.from_str(text)
        except (ImportError, OSError, ValueError):
            return None
        except Exception as error:
            # `tokenizers` raises `Exception` itself, and nothing narrower, for JSON that describes no tokenizer.
            if type(error) is not Exception:
                raise
            return None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def estimate(caption: str) -> int:
    """Tokens of a caption in a vocabulary of the usual size: words, digits and signs; characters where words aren't
    written apart."""
    total = 0
    for piece in _PIECES.findall(caption):
        if piece[0] >= "\u2e80":
            total += len(piece)
        else:
            total += 1 if len(piece) <= _LETTERS_A_TOKEN else -(-len(piece) // 5)
    return total


def limit_of(base_model: str, tokens: int | None, around: int, folder: Path | None) -> TextLimit | None:
    """The limit of a base model; None where it is not known.

    Args:
        tokens, around: As the catalogue says, `text_tokens` and `text_tokens_around`.
        folder: The base model in diffusers layout, if it is on disk.
    """
    if tokens is None:
        return None
    found = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None) if folder else None
    return TextLimit(base_model, tokens, around, found)
