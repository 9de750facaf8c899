"""Writes the demo's questions: instruction data, preferences, alignment prompts and tests about documented functions.

All of it is cut from cleaned documents (`facts.read_facts`). Four sets ask in four disjoint groups of phrasings, so
their prompts are disjoint whatever the names; held-out functions are asked about in the test only; the true answers
of alignment prompts and tests are kept apart, for evaluation, where no training stage looks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chatloom.dialogue.facts import Catalogue, Fact, SourceDocument, read_facts
from chatloom.dialogue.questions import DocumentationSettings, QuestionWriter
from chatloom.dialogue.record import Conversation, DialogueError, Message, Preference
from chatloom.dialogue.splits import assign, prompt_key, require_disjoint
from chatloom.dialogue.storage import Prompt


@dataclass(frozen=True)
class Sets:
    """What the demo trains on and is measured by; `alignment_answers` and `test` are for evaluation only.

    A test prompt's `kind` is trained_function, heldout_function, invented_name or multi_turn; its metadata gives
    the function's `name` and, for an invented one, whether its last part occurs in training refusals (`part_seen`).
    """

    facts: list[Fact]
    heldout_facts: list[Fact]
    sft: list[Conversation]
    preferences: list[Preference]
    heldout_preferences: list[Preference]
    alignment: list[Prompt]
    alignment_answers: list[Prompt]
    test: list[Prompt]
    catalogue: Catalogue

    def prompts(self) -> dict[str, list[str]]:
        """Normalised prompts by set, every prompt of a multi-turn conversation counted (for `splits.overlaps`)."""
        return {
            "sft": [key for conversation in self.sft for key in _prompt_keys(conversation.messages)],
            "preference": [prompt_key(pair.prompt) for pair in self.preferences],
            "held-out preference": [prompt_key(pair.prompt) for pair in self.heldout_preferences],
            "alignment": [prompt_key(prompt.messages) for prompt in self.alignment],
            "test": [prompt_key(item.messages) for item in self.test],
        }


def write_sets(documents: Iterable[SourceDocument], settings: DocumentationSettings) -> Sets:
    """Return all sets, a function of the documents and settings alone (not of the documents' order).

    Raises DialogueError where the documents offer too few facts or names, or where two sets share a prompt.
    """
    documents = sorted(documents, key=lambda document: document.id)
    catalogue = read_facts(documents, min_chars=settings.min_chars, max_chars=settings.max_chars)
    facts, heldout = choose_facts(catalogue.facts, settings)
    writer = QuestionWriter(settings, facts, catalogue, [document.text for document in documents])
    alignment_answers = writer.alignment()
    shares = {"train": 1 - settings.heldout_pair_share, "held out": settings.heldout_pair_share}
    parts: dict[str, list[Preference]] = {"train": [], "held out": []}
    for pair in writer.preferences():
        parts[assign(prompt_key(pair.prompt), shares, settings.seed)].append(pair)
    sets = Sets(
        facts,
        heldout,
        writer.sft(),
        parts["train"],
        parts["held out"],
        [Prompt(item.id, item.messages, language=item.language) for item in alignment_answers],
        alignment_answers,
        writer.test(heldout),
        catalogue,
    )
    require_disjoint(sets.prompts())
    return sets


def choose_facts(candidates: Sequence[Fact], settings: DocumentationSettings) -> tuple[list[Fact], list[Fact]]:
    """Return (trained, held-out) facts, taken round over the modules so that no large one crowds out the rest."""
    wanted = settings.n_facts + settings.heldout_facts
    rng = random.Random(f"{settings.seed}:facts")
    by_kind = {
        kind: _round_over_modules([fact for fact in candidates if fact.kind == kind], rng)
        for kind in ("function", "method")
    }
    methods = min(round(wanted * settings.methods_share), len(by_kind["method"]))
    functions = min(wanted - methods, len(by_kind["function"]))
    methods = min(wanted - functions, len(by_kind["method"]))
    if functions + methods < wanted:
        raise DialogueError(
            f"{settings.n_facts} facts and {settings.heldout_facts} held-out ones were asked for, but the documents "
            f"offer {len(candidates)}; lower n_facts or heldout_facts, widen min_chars..max_chars, or give more pages"
        )
    chosen = by_kind["function"][:functions] + by_kind["method"][:methods]
    rng.shuffle(chosen)
    return chosen[: settings.n_facts], chosen[settings.n_facts :]


def _round_over_modules(facts: Sequence[Fact], rng: random.Random) -> list[Fact]:
    modules: dict[str, list[Fact]] = {}
    for fact in facts:
        modules.setdefault(fact.module, []).append(fact)
    order = sorted(modules)
    rng.shuffle(order)
    for module in order:
        rng.shuffle(modules[module])
    rounds = max((len(held) for held in modules.values()), default=0)
    return [modules[module][i] for i in range(rounds) for module in order if i < len(modules[module])]


def _prompt_keys(messages: Sequence[Message]) -> list[str]:
    return [prompt_key(messages[:i]) for i, message in enumerate(messages) if message.role == "assistant"]
