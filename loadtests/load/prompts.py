"""Prompts of a wanted length whose beginnings never repeat, so that no cache of the server can help."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

# Frequent English words, of which nearly every vocabulary has one token with the blank before it.
_LIST = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea body information back parent
face others level office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music process market sense nation plan college interest death
experience effect use class control care field development role effort rate heart drug show leader light voice wife
police mind price report decision son view relationship town road arm difference value building action season
society tax director position player record paper space ground form event official matter center couple site project
activity star table need court oil situation cost industry figure street image phone data picture practice piece
land product doctor wall patient worker news test movie north love support technology step baby computer type
attention film tree source organization look window growth
"""
WORDS = tuple(_LIST.split())
_UNIQUE_WORDS = 6
"""Words at the beginning that make a prompt different: their number is of 46 bits."""


@dataclass(frozen=True)
class Prompts:
    """Makes prompts.

    Args:
        salt: a number that no other run has; its prompts differ from the first words on.
        tokens_per_word: tokens that the server's tokenizer makes of one of ``WORDS``.
        template_tokens: tokens that the server adds to a chat of one message.
    """

    salt: int
    tokens_per_word: float = 1.0
    template_tokens: float = 0.0

    def text(self, tokens: int, random: Random, key: str, *, template: bool = False) -> str:
        """Return a text of about so many tokens.

        Args:
            tokens: the wanted length, with the template's tokens if ``template``.
            random: chooses the words.
            key: what makes the text unique within the run.
            template: whether it is the only message of a chat.
        """
        words = max(1, round((tokens - self.template_tokens * template) / self.tokens_per_word))
        first = self.unique(key).split()[:words]
        return " ".join([*first, *random.choices(WORDS, k=words - len(first))])

    def unique(self, key: str) -> str:
        """Return words that no other key and no other run has."""
        return " ".join(Random(f"{self.salt}/{key}").choices(WORDS, k=_UNIQUE_WORDS))


def calibrated(salt: int, words: tuple[int, int], prompt_tokens: tuple[int, int]) -> Prompts:
    """Return prompts that fit a server's tokenizer, from the lengths that it told for two prompts.

    Args:
        salt: see ``Prompts``.
        words: the numbers of words of a short and of a long prompt.
        prompt_tokens: the server's ``usage.prompt_tokens`` for them.

    Raises:
        ValueError: the server did not count more tokens for the longer prompt.
    """
    slope = (prompt_tokens[1] - prompt_tokens[0]) / (words[1] - words[0])
    if slope <= 0:
        raise ValueError(f"the server counts {prompt_tokens} tokens for {words} words: its usage cannot be used")
    return Prompts(salt, slope, max(0.0, prompt_tokens[0] - slope * words[0]))
