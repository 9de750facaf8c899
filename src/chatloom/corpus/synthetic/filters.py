"""Whether a reply is a document: finished, in the prompt's language, no refusal, no garbage, no copy of its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chatloom.corpus.duplicates.shingling import windows, word_units
from chatloom.corpus.settings import rule_limits
from chatloom.corpus.synthetic.settings import FilterSettings
from chatloom.corpus.synthetic.templates import Refusals
from chatloom.corpus.text.language import Language, detect_language
from chatloom.corpus.text.measures import CHARACTER_LANGUAGES
from chatloom.corpus.text.rules import judge, measure_texts

# As for short texts in the search for evaluation sets (duplicates/contamination.py).
COPIED_WORDS, COPIED_CHARACTERS = 8, 12
BEFORE_BEGINNING = " \t\n*#>-"
Verdict = tuple[str, str]  # reason, and what was found


def unfinished(finish: str, settings: FilterSettings) -> Verdict | None:
    """A reply that was cut off. Servers say `length`; what a content filter cut says so."""
    if settings.unfinished or finish in ("stop", "eos", "end_turn", ""):
        return None
    return "unfinished", f"ended by {finish}"


def other_language(found: Language, wanted: str, settings: FilterSettings) -> Verdict | None:
    """A reply in another language than its prompt's."""
    if not settings.same_language or found.code == wanted:
        return None
    return "other_language", f"{found.code} (confidence {found.confidence:.2f}), asked for in {wanted}"


def refusal(text: str, phrases: Refusals, settings: FilterSettings) -> Verdict | None:
    """A reply that declines, or that speaks about itself."""
    if not settings.refusals:
        return None
    small = text.lower().replace("’", "'")
    start = small.lstrip(BEFORE_BEGINNING)
    found = next((phrase for phrase in phrases.beginning if start.startswith(phrase)), None)
    found = found or next((phrase for phrase in phrases.anywhere if phrase in small), None)
    return None if found is None else ("refusal", f"has the phrase {found!r}")


def broken_rule(texts: Sequence[str], languages: Sequence[str], settings: FilterSettings) -> list[Verdict | None]:
    """For each text the first rule that says no; the detail lists all that do."""
    limits = rule_limits(settings.rules)
    measured = measure_texts(texts, languages)
    verdicts: list[Verdict | None] = []
    for place, language in enumerate(languages):
        failed = {
            name: said
            for name, values in measured.items()
            if (said := judge(float(values[place]), language, limits[name])) is not None
        }
        details = "; ".join(f"{name} {said}" for name, said in failed.items())
        verdicts.append((next(iter(failed)), details) if failed else None)
    return verdicts


def copied_share(text: str, prompt: str, language: str) -> float:
    """Share of the text's n-grams that the prompt has too, instructions and passage alike."""
    size = COPIED_CHARACTERS if language in CHARACTER_LANGUAGES else COPIED_WORDS
    own, given = windows(word_units([text, prompt]), size)
    return float(np.isin(own, given).mean()) if len(own) else 0.0


def copied(text: str, prompt: str, language: str, settings: FilterSettings) -> Verdict | None:
    """A reply that says its prompt again."""
    share = copied_share(text, prompt, language)
    if share <= settings.max_copied:
        return None
    return "copied", f"{share:.0%} of its n-grams are the prompt's; at most {settings.max_copied:.0%} may be"


def judge_replies(
    replies: Sequence[Mapping[str, str]], refusals: Mapping[str, Refusals], settings: FilterSettings
) -> list[tuple[Verdict | None, Language]]:
    """Verdict (None: it stays) and language of replies; each has text, finish, language (asked for) and prompt."""
    found = [detect_language(reply["text"]) for reply in replies]
    wanted = [reply["language"] for reply in replies]
    # The rules of the language asked for: what is in another one goes before they are looked at.
    rules = broken_rule([reply["text"] for reply in replies], wanted, settings)
    verdicts = []
    for reply, language, rule in zip(replies, found, rules):
        text, asked = reply["text"], reply["language"]
        verdict = (
            unfinished(reply["finish"], settings)
            or (None if text else ("empty", "no text"))
            or refusal(text, refusals.get(asked, Refusals()), settings)
            or other_language(language, asked, settings)
            or rule
            or copied(text, reply["prompt"], asked, settings)
        )
        verdicts.append((verdict, language))
    return verdicts
