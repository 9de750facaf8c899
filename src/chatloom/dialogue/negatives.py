"""Wrong answers to questions whose right answer is known, and names that do not exist.

Each kind of wrong answer is one that a small model gives: another function's sentence, the right one gone wrong on
the way, half a sentence, the same sentence over and over, a right start that rambles on, a refusal of what it knows,
a made-up fact about a name that nobody defined, the answer framed in the other language.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from chatloom.dialogue.facts import Catalogue, Fact
from chatloom.dialogue.phrasings import LANGUAGES, answer
from chatloom.dialogue.record import DialogueError

KINDS = ("another_function", "altered", "cut_off", "repeated", "rambling", "refusal", "other_language", "invented")


class Rejections:
    """Writes wrong answers out of the facts given; every one differs from the right answer."""

    def __init__(self, facts: Sequence[Fact], *, same_module_share: float = 0.5) -> None:
        self.facts = list(facts)
        if len(self.facts) < 2:
            raise DialogueError(f"wrong answers need at least two facts to choose from; found {len(self.facts)}")
        self.same_module_share = same_module_share
        self.by_module: dict[str, list[Fact]] = {}
        self.by_part: dict[str, list[Fact]] = {}
        for fact in self.facts:
            self.by_module.setdefault(fact.module, []).append(fact)
            self.by_part.setdefault(fact.part, []).append(fact)

    def write(self, kind: str, fact: Fact, language: str, rng: random.Random) -> str:
        """Return a wrong answer of `kind` to a question in `language` about `fact`."""
        right = answer(language, fact.sentence)
        if kind == "another_function":
            return answer(language, self.another(fact, rng).sentence)
        if kind == "altered":
            return answer(language, self.altered(fact, rng))
        if kind == "cut_off":
            words = fact.sentence.split(" ")
            kept = rng.randint(1, max(1, len(words) - 1))
            return answer(language, " ".join(words[:kept]).rstrip(".") if len(words) > 1 else fact.sentence[:8])
        if kind == "repeated":
            if rng.random() < 0.5:
                return " ".join([right] * rng.randint(2, 3))
            words = fact.sentence.rstrip(".").split(" ")
            tail = words[-rng.randint(1, min(3, len(words))) :]
            return answer(language, " ".join(words + tail * rng.randint(2, 4)) + ".")
        if kind == "rambling":
            return right + " " + " ".join(self.another(fact, rng).sentence for _ in range(rng.randint(1, 2)))
        if kind == "refusal":
            return answer(language, None)
        if kind == "other_language":
            return answer(LANGUAGES[1 - LANGUAGES.index(language)], fact.sentence)
        raise DialogueError(f"kind of wrong answer is {kind!r}; expected one of {', '.join(KINDS[:-1])}")

    def altered(self, fact: Fact, rng: random.Random) -> str:
        """Return the right sentence gone wrong on the way, as sampling goes wrong.

        A right start with another end, a word exchanged, or two words run together.
        """
        words = fact.sentence.split(" ")
        for _ in range(100):
            other = self.another(fact, rng).sentence.split(" ")
            way, place = rng.randrange(3), rng.randrange(len(words))
            if way == 0:
                start = rng.randint(1, max(1, len(words) - 1))
                made = words[:start] + other[-rng.randint(1, len(other)) :]
            else:
                word = rng.choice(other)
                mixed = words[place][: (len(words[place]) + 1) // 2] + word[len(word) // 2 :]
                made = [*words[:place], word if way == 1 else mixed, *words[place + 1 :]]
            if made != words:
                return " ".join(made)
        raise DialogueError(f"no other sentence differs from {fact.sentence!r}; give more facts")

    def another(self, fact: Fact, rng: random.Random) -> Fact:
        """Return another fact, from the same module with probability `same_module_share` where it has one."""
        near = [other for other in self.by_module[fact.module] if other != fact]
        if near and rng.random() < self.same_module_share:
            return rng.choice(near)
        while True:
            other = rng.choice(self.facts)
            if other != fact:
                return other

    def invention(self, name: str, language: str, rng: random.Random) -> str:
        """Return a made-up answer for an invented name: that of a same last part or module where there is one."""
        module, part = name.rsplit(".", 1)
        pools = (self.by_part.get(part, []), self.by_module.get(module, []), self.facts)
        pool = rng.choice([pool for pool in pools if pool])
        return answer(language, rng.choice(pool).sentence)


class InventedNames:
    """Makes names that no document knows, each once, out of real owners and real last parts.

    Parts are cut in two halves: `seen` ones may be refused in training, `unseen` ones only ever appear in test
    names. A share of the names (`from_facts`) ends in a part that trained facts have too, so that a part by itself
    does not tell that a name is invented.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        facts: Sequence[Fact],
        texts: Sequence[str],
        rng: random.Random,
    ) -> None:
        self.owners = [fact.owner for fact in facts]
        self.known = catalogue.names
        self.text = "\n".join(texts)
        self.used: set[str] = set()
        parts = [part for part in catalogue.parts if len(part) > 2]
        rng.shuffle(parts)
        half = len(parts) // 2
        self.parts = {True: sorted(parts[:half]), False: sorted(parts[half:])}
        self.seen_parts = frozenset(self.parts[True])
        trained = {fact.part for fact in facts}
        self.fact_parts = {seen: [part for part in pool if part in trained] for seen, pool in self.parts.items()}
        if not all(self.parts.values()) or not self.owners:
            raise DialogueError(
                f"{len(parts)} name parts and {len(self.owners)} owners are too few to invent names from; "
                "give more documents or set the refusal share to 0"
            )

    def make(self, rng: random.Random, *, seen: bool, from_facts: float = 0.5) -> str:
        """Return a new name; raises DialogueError when the owners and parts allow no more."""
        for _ in range(10_000):
            of_facts = bool(self.fact_parts[seen]) and rng.random() < from_facts
            part = rng.choice(self.fact_parts[seen] if of_facts else self.parts[seen])
            name = f"{rng.choice(self.owners)}.{part}"
            if name not in self.used and name not in self.known and name not in self.text:
                self.used.add(name)
                return name
        raise DialogueError(
            f"no new invented name was found after {len(self.used)} of them; "
            "lower the refusal share or the number of conversations, or give more documents"
        )

    def is_seen(self, name: str) -> bool:
        """Whether the name's last part belongs to the half that training refusals may use."""
        return name.rsplit(".", 1)[1] in self.seen_parts
