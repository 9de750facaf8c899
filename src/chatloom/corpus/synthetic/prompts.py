"""Clusters and templates -> prompts. Everything about prompt number n is drawn from (seed, n), so that more prompts, or
prompts written elsewhere, leave the first ones as they were.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from chatloom.corpus.synthetic.templates import JOINED_BY, PASSAGE, TERMS, Template, Templates, filled
from chatloom.settings import digest


@dataclass(frozen=True)
class Seed:
    """A passage of a document that a prompt may show."""

    document: str
    passage: str


@dataclass(frozen=True)
class Cluster:
    """Documents that are about the same: how many, in which language, their topic terms, some passages."""

    name: str
    language: str
    n_documents: int
    terms: tuple[str, ...]
    seeds: tuple[Seed, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is sent, and what it was made of."""

    number: int
    text: str
    template: str
    language: str
    cluster: str
    terms: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = ()

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the text."""
        return digest(self.text)[:16]


class Composer:
    """Writes prompts of some clusters. Clusters for which no template can be filled are left out.

    `balance`: a cluster of n documents is drawn with a weight of n to this power; 0 takes all alike, 1 as they are.
    """

    def __init__(
        self, clusters: Sequence[Cluster], templates: Templates, *, terms: int, balance: float, seed: int
    ) -> None:
        usable = ((cluster, _fitting(cluster, templates)) for cluster in sorted(clusters, key=lambda item: item.name))
        self.clusters = [(cluster, fitting) for cluster, fitting in usable if fitting]
        self._weights = [float(cluster.n_documents) ** balance for cluster, _ in self.clusters]
        self._templates, self._terms, self._seed = templates, terms, seed

    def compose(self, number: int) -> Prompt:
        """Prompt `number`; raises ValueError where there is no cluster to write about."""
        if not self.clusters:
            raise ValueError("no cluster has terms or passages for any template")
        draw = random.Random(f"chatloom prompt {self._seed} {number}")
        [(cluster, fitting)] = draw.choices(self.clusters, self._weights)
        [name] = draw.choices(list(fitting), [template.weight for template in fitting.values()])
        text = fitting[name].texts[cluster.language]
        some = sorted(draw.sample(range(len(cluster.terms)), min(self._terms, len(cluster.terms))))
        terms = tuple(cluster.terms[place] for place in some)
        seed = draw.choice(cluster.seeds) if cluster.seeds else None
        values = {TERMS: JOINED_BY.get(cluster.language, ", ").join(terms), PASSAGE: seed.passage if seed else ""}
        for choice, texts in sorted(self._templates.choices.items()):
            if texts.get(cluster.language):
                values[choice] = draw.choice(texts[cluster.language])
        shown = fitting[name].needs_passage(cluster.language)
        return Prompt(
            number=number,
            text=filled(text, values),
            template=name,
            language=cluster.language,
            cluster=cluster.name,
            terms=terms if f"{{{TERMS}}}" in text else (),
            seeds=(seed,) if shown and seed else (),
        )


def sample_seed(seed: int, number: int, sample: int) -> int:
    """What decides the randomness of a reply: 31 bits of (seed, prompt number, sample)."""
    key = f"chatloom reply {seed} {number} {sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") >> 1


def _fitting(cluster: Cluster, templates: Templates) -> dict[str, Template]:
    """The templates that have the cluster's language and whose places it can fill."""
    return {
        name: template
        for name, template in templates.templates.items()
        if cluster.language in template.texts
        and (cluster.seeds or not template.needs_passage(cluster.language))
        and (cluster.terms or f"{{{TERMS}}}" not in template.texts[cluster.language])
    }
