"""Asks about facts: how many questions of each sort, in which words and language, alone or inside a dialogue.

`QuestionWriter` writes one set at a time, each with its own random numbers, so that a changed count in one set
leaves the others as they were (but for the invented names, which no two sets share).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chatloom.dialogue.facts import Catalogue, Fact
from chatloom.dialogue.negatives import KINDS, InventedNames, Rejections
from chatloom.dialogue.phrasings import FILLERS_ZH, LANGUAGES, LEADS, QUESTIONS, TAILS, answer, question
from chatloom.dialogue.record import Conversation, DialogueError, Message, Preference
from chatloom.dialogue.storage import Prompt

PAIR_KINDS: Mapping[str, float] = {
    "another_function": 0.30,
    "altered": 0.20,
    "cut_off": 0.08,
    "repeated": 0.06,
    "rambling": 0.07,
    "refusal": 0.11,
    "other_language": 0.06,
    "invented": 0.12,
}


@dataclass(frozen=True)
class DocumentationSettings:
    """How many questions of each sort; shares are of the whole they name. Raises DialogueError on impossible values.

    `refusal_share`: of SFT questions, alignment prompts; `multi_turn_share`: of conversations with two or three
    questions; `unended_share`: of cut-off and repeated answers rendered without an end token;
    `same_module_share`: of another_function answers taken from the same module where it has one;
    `invented_from_facts`: of invented names whose last part is that of a trained function, in training and
    (`test_invented_from_facts`) in the test.
    """

    n_facts: int = 400
    heldout_facts: int = 60
    methods_share: float = 0.25
    min_chars: int = 20
    max_chars: int = 90
    questions_per_fact: int = 10
    pairs_per_fact: int = 8
    alignment_per_fact: int = 4
    test_per_fact: int = 2
    test_invented: int = 200
    test_multi_turn: int = 100
    refusal_share: float = 0.15
    multi_turn_share: float = 0.15
    heldout_pair_share: float = 0.1
    unended_share: float = 0.5
    same_module_share: float = 0.5
    invented_from_facts: float = 0.5
    test_invented_from_facts: float = 0.5
    pair_kinds: Mapping[str, float] = field(default_factory=lambda: dict(PAIR_KINDS))
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith(("_share", "_from_facts")) and not 0 <= value <= 1:
                raise DialogueError(f"{name} is {value}; expected a share between 0 and 1")
            if isinstance(value, int) and value < 0:
                raise DialogueError(f"{name} is {value}; expected 0 or more")
        if self.n_facts < 2 or self.refusal_share > 0.9:
            raise DialogueError(
                f"n_facts is {self.n_facts} (at least 2) and refusal_share {self.refusal_share} (at most 0.9)"
            )
        unknown = [kind for kind in self.pair_kinds if kind not in KINDS]
        if unknown or any(share < 0 for share in self.pair_kinds.values()) or not sum(self.pair_kinds.values()):
            raise DialogueError(f"pair_kinds is {dict(self.pair_kinds)}; expected shares >= 0 of {', '.join(KINDS)}")


_WORD = re.compile(r"\b[a-z]{3,12}\b")


@dataclass(frozen=True)
class _Slot:
    """One question to be asked: about a fact, or about a name that does not exist (`fact` is None)."""

    name: str
    fact: Fact | None
    language: str
    phrasing: int

    @property
    def right(self) -> str:
        return answer(self.language, self.fact.sentence if self.fact else None)


class QuestionWriter:
    """Writes the questions of each set about `facts`; `catalogue` and `texts` say which names exist."""

    def __init__(
        self, settings: DocumentationSettings, facts: list[Fact], catalogue: Catalogue, texts: list[str]
    ) -> None:
        self.settings = settings
        self.facts = facts
        self.names = InventedNames(catalogue, facts, texts, self._rng("parts"))
        self.words = sorted({word for text in texts for word in _WORD.findall(text)})
        self.rejections = Rejections(facts, same_module_share=settings.same_module_share)

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.settings.seed}:{purpose}")

    def _slots(self, group: str, per_fact: int, refusal_share: float, rng: random.Random) -> list[_Slot]:
        """Questions about every fact, half in each language, with distinct phrasings; and the refusals among them."""
        slots = []
        for number, fact in enumerate(self.facts):
            counts = [per_fact // 2, per_fact // 2]
            counts[number % 2] += per_fact % 2
            for language, count in zip(LANGUAGES, counts):
                available = len(QUESTIONS[group][language].opening)
                order = rng.sample(range(available), available)
                slots += [_Slot(fact.name, fact, language, order[i % available]) for i in range(count)]
        refusals = round(len(slots) * refusal_share / (1 - refusal_share))
        for number in range(refusals):
            name = self.names.make(rng, seen=True, from_facts=self.settings.invented_from_facts)
            slots.append(_Slot(name, None, LANGUAGES[number % 2], rng.randrange(1000)))
        rng.shuffle(slots)
        return slots

    def sft(self) -> list[Conversation]:
        """Conversations of one to three questions; every fact is asked about `questions_per_fact` times."""
        rng = self._rng("sft")
        slots = self._slots("sft", self.settings.questions_per_fact, self.settings.refusal_share, rng)
        conversations: list[Conversation] = []
        while slots:
            size = rng.randint(2, 3) if rng.random() < self.settings.multi_turn_share else 1
            taken: list[_Slot] = []
            while slots and len(taken) < size and all(slots[-1].name != other.name for other in taken):
                taken.append(slots.pop())
            messages: list[Message] = []
            for turn, slot in enumerate(taken):
                messages += [self._ask("sft", slot, turn, rng), Message("assistant", slot.right)]
            conversations.append(
                Conversation(
                    f"sft-{len(conversations):06d}",
                    messages,
                    source=", ".join(dict.fromkeys(slot.fact.document for slot in taken if slot.fact)),
                    metadata={
                        "names": [slot.name for slot in taken],
                        "languages": [slot.language for slot in taken],
                        "refusals": sum(slot.fact is None for slot in taken),
                    },
                )
            )
        return conversations

    def preferences(self) -> list[Preference]:
        """Pairs (right, wrong): `pairs_per_fact` for each fact on average, kinds in the shares set."""
        rng = self._rng("preferences")
        total = len(self.facts) * self.settings.pairs_per_fact
        kinds = _quota(self.settings.pair_kinds, total)
        rng.shuffle(kinds)
        pairs: list[Preference] = []
        about = 0
        for number, kind in enumerate(kinds):
            language = LANGUAGES[number % 2]
            if kind == "invented":
                name = self.names.make(rng, seen=True, from_facts=self.settings.invented_from_facts)
                slot = _Slot(name, None, language, rng.randrange(1000))
                wrong = self.rejections.invention(name, language, rng)
            else:
                fact = self.facts[about % len(self.facts)]
                about += 1
                slot = _Slot(fact.name, fact, language, rng.randrange(1000))
                wrong = self.rejections.write(kind, fact, language, rng)
            ended = kind not in ("cut_off", "repeated") or rng.random() >= self.settings.unended_share
            pairs.append(
                Preference(
                    f"pair-{number:06d}",
                    self._prompt("preference", slot, rng),
                    [slot.right, wrong],
                    kind=kind,
                    ended=[True, ended],
                    source=slot.fact.document if slot.fact else "",
                    metadata={"name": slot.name, "language": language},
                )
            )
        return pairs

    def alignment(self) -> list[Prompt]:
        """Prompts with their true answers, which only evaluation may see."""
        rng = self._rng("alignment")
        slots = self._slots("alignment", self.settings.alignment_per_fact, self.settings.refusal_share, rng)
        return [
            Prompt(
                f"alignment-{number:06d}",
                self._prompt("alignment", slot, rng),
                slot.right,
                "trained_function" if slot.fact else "invented_name",
                slot.language,
                {"name": slot.name} if slot.fact else {"name": slot.name, "part_seen": True},
            )
            for number, slot in enumerate(slots)
        ]

    def test(self, heldout: Sequence[Fact]) -> list[Prompt]:
        """Test prompts of all four kinds with their true answers."""
        rng = self._rng("test")
        items: list[Prompt] = []

        def add(slot: _Slot, kind: str, messages: list[Message], part_seen: bool | None = None) -> None:
            metadata = {"name": slot.name} if part_seen is None else {"name": slot.name, "part_seen": part_seen}
            items.append(Prompt(f"test-{len(items):06d}", messages, slot.right, kind, slot.language, metadata))

        for kind, facts in (("trained_function", self.facts), ("heldout_function", heldout)):
            for number in range(self.settings.test_per_fact * len(facts)):
                fact = facts[number % len(facts)]
                language = LANGUAGES[(number // len(facts) + number) % 2]
                slot = _Slot(fact.name, fact, language, rng.randrange(1000))
                add(slot, kind, [self._ask("test", slot, 0, rng)])
        for number in range(self.settings.test_invented):
            seen = number % 4 < 2
            name = self.names.make(rng, seen=seen, from_facts=self.settings.test_invented_from_facts)
            slot = _Slot(name, None, LANGUAGES[number % 2], rng.randrange(1000))
            add(slot, "invented_name", [self._ask("test", slot, 0, rng)], seen)
        for number in range(self.settings.test_multi_turn):
            fact = self.facts[rng.randrange(len(self.facts))]
            slot = _Slot(fact.name, fact, LANGUAGES[number % 2], rng.randrange(1000))
            add(slot, "multi_turn", self._after_history("test", slot, rng))
        return items

    def _ask(self, group: str, slot: _Slot, turn: int, rng: random.Random) -> Message:
        follow = turn > 0 and rng.random() < 0.5
        text = question(group, slot.language, slot.phrasing, slot.name, follow=follow)
        if group != "test":
            text = self._decorate(text, slot.language, rng)
        return Message("user", text)

    def _decorate(self, text: str, language: str, rng: random.Random) -> str:
        """Half of the questions outside the test get something to read past: a lead, words from the pages, a tail."""
        chance = rng.random()
        if chance < 0.2:
            text = rng.choice(LEADS[language]) + text
        elif chance < 0.4:
            text = self._noise(language, rng) + text
        return text + (rng.choice(TAILS[language]) if rng.random() < 0.2 else "")

    def _noise(self, language: str, rng: random.Random) -> str:
        count = rng.randint(1, 3)
        if language == "zh" and rng.random() < 0.7:
            return "".join(rng.choice(FILLERS_ZH) for _ in range(count)) + rng.choice("，。：")
        noise = " ".join(rng.choice(self.words) for _ in range(count))
        return f"{noise.capitalize()}. " if language == "en" else f"{noise}："

    def _prompt(self, group: str, slot: _Slot, rng: random.Random) -> list[Message]:
        if rng.random() < self.settings.multi_turn_share:
            return self._after_history(group, slot, rng)
        return [self._ask(group, slot, 0, rng)]

    def _after_history(self, group: str, slot: _Slot, rng: random.Random) -> list[Message]:
        """One or two answered questions about other functions, in either language, and then the slot's question."""
        messages: list[Message] = []
        used = {slot.name}
        turns = rng.randint(1, 2)
        for turn in range(turns):
            others = [fact for fact in rng.sample(self.facts, min(3, len(self.facts))) if fact.name not in used]
            if not others:
                break
            used.add(others[0].name)
            other = _Slot(others[0].name, others[0], rng.choice(LANGUAGES), rng.randrange(1000))
            messages += [self._ask(group, other, turn, rng), Message("assistant", other.right)]
        return [*messages, self._ask(group, slot, len(messages) // 2, rng)]


def _quota(shares: Mapping[str, float], total: int) -> list[str]:
    """Return `total` kinds in the shares' proportions (largest remainder)."""
    scale = total / sum(shares.values())
    counts = {kind: int(share * scale) for kind, share in shares.items()}
    by_remainder = sorted(shares, key=lambda kind: (counts[kind] - shares[kind] * scale, kind))
    for kind in by_remainder[: total - sum(counts.values())]:
        counts[kind] += 1
    return [kind for kind, count in counts.items() for _ in range(count)]
