"""From decisions to a tally: what is counted of each document, and which examples of it are kept.

Tables of a tally, with their amounts:

    before    (language|source, name)                        documents, characters, tokens
    removed   (step, rule, language|source, name)            the same, by the first rule that says no
    kept      (side, language|source, name)                  the same, then documents and characters times the weight
    failed    (step, rule, language)                         documents, characters: whatever other rules say
    only      (step, rule)                                   those that no other rule objects to
    both      (step, rule, step, rule)                       documents that two rules object to
    edited    (language)                                     documents, characters before, characters after
    edits     (what edits, language)                         documents, places, characters in these places
    values    (label, value|absent|rest, value)              all documents, those that stay
    sizes     (size)                                         documents in clusters of this size, those that stay
    clusters  (cluster, kind of copy)                        documents of the clusters that are shown
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from chatloom.corpus.record import Document
from chatloom.corpus.report.label_counts import LabelCounts
from chatloom.corpus.report.marks import edited_pieces
from chatloom.corpus.report.survey import Frame, language_of
from chatloom.corpus.report.tally import Tally
from chatloom.corpus.selection.copies import CLUSTER
from chatloom.corpus.selection.decisions import Decision, spans_of
from chatloom.corpus.selection.edits import pairs
from chatloom.corpus.split import sample_value

WEIGHT = 1 << 32  # weights are counted in steps of 1/2**32, so that their sums do not depend on the order
EXCERPT = 500  # characters of an example
COMPARED = 4000  # characters of a copy that are compared
AT_ONCE = 4096  # names of sources that are remembered
FIRST = "first"  # the document that others are copies of
CountTokens = Callable[[Sequence[str]], Sequence[int]]


class Counting:
    """Adds decisions to a tally.

    `columns` maps each label to its kind (`survey`), `names` a label of kinds to what its numbers mean; `cut` are
    the labels whose spans are cut out, `placeholders` what is put in the place of which kind of personal data.
    """

    def __init__(
        self,
        frame: Frame,
        columns: Mapping[str, str],
        names: Mapping[str, Mapping[str, str]],
        cut: Sequence[str],
        placeholders: Mapping[int, str],
        seed: int,
        count_tokens: CountTokens | None = None,
    ) -> None:
        self.tally = Tally()
        self.frame, self.names, self.seed = frame, names, seed
        self.cut, self.placeholders, self.count_tokens = cut, placeholders, count_tokens
        self._labels = LabelCounts(self.tally, frame, columns, names)
        self._sources: dict[str, str] = {}  # names under which sources are counted

    def add(self, decisions: Sequence[Decision]) -> None:
        """Count documents."""
        texts = [decision.document.text for decision in decisions]
        before = self._tokens(texts)
        edited = [d.stays.text for d in decisions if d.stays is not None and d.steps]
        after = iter(self._tokens(edited))
        for decision, tokens in zip(decisions, before):
            left = next(after) if decision.stays is not None and decision.steps else tokens
            self._add(decision, tokens, left)
        self._labels.add([d.document for d in decisions], [d.stays is not None for d in decisions])

    def finish(self) -> Tally:
        """The tally of all that was added."""
        self._labels.finish()
        return self.tally

    def _tokens(self, texts: Sequence[str]) -> Sequence[int]:
        return self.count_tokens(texts) if self.count_tokens is not None else [0] * len(texts)

    def _add(self, decision: Decision, tokens: int, left: int) -> None:
        document, count = decision.document, self.tally.count
        language = language_of(document)
        names = (("language", language), ("source", self._source(document.source)))
        amounts = (1, len(document.text), tokens)
        for by in names:
            count("before", by, amounts)
        if decision.stays is None:
            self._add_removed(decision, names, amounts, language)
        else:
            stays = decision.stays
            weight = round(float(stays.labels["weight"]) * WEIGHT)  # type: ignore[arg-type]
            kept = (1, len(stays.text), left, weight, weight * len(stays.text))
            for by in names:
                count("kept", (str(stays.labels["split"]), *by), kept)
            if decision.steps:
                self._add_edits(decision, language)
        self._add_copies(decision)

    def _source(self, source: str) -> str:
        """The name under which a source is counted; neighbours have the same, mostly."""
        if source not in self._sources:
            if len(self._sources) >= AT_ONCE:
                self._sources.clear()
            self._sources[source] = self.frame.source(source)
        return self._sources[source]

    def _add_removed(
        self, decision: Decision, names: Sequence[tuple[str, str]], amounts: Sequence[int], language: str
    ) -> None:
        document, count = decision.document, self.tally.count
        rules = [(failure.step, failure.reason) for failure in decision.failures]
        for by in names:
            count("removed", (*rules[0], *by), amounts)
        for rule in rules:
            count("failed", (*rule, language), amounts[:2])
        if len(rules) == 1:
            count("only", rules[0], amounts[:2])
        for one, other in itertools.combinations(rules, 2):
            count("both", (*one, *other), (1,))
        reason = decision.failures[0]
        self.tally.sample(
            ("removed", *rules[0]),
            sample_value(document.id, self.seed),
            document.id,
            lambda: {
                **_about(document),
                "detail": reason.detail,
                "also": [failure.detail for failure in decision.failures[1:]],
                "characters": len(document.text),
                "text": document.text[:EXCERPT],
            },
        )

    def _add_edits(self, decision: Decision, language: str) -> None:
        document, stays = decision.document, decision.stays
        assert stays is not None
        self.tally.count("edited", (language,), (1, len(document.text), len(stays.text)))
        places: dict[str, list[tuple[int, int]]] = {}
        for name, span in self._edited_spans(document):
            places.setdefault(name, []).append(span)
        for name, spans in places.items():
            self.tally.count("edits", (name, language), (1, len(spans), sum(end - start for start, end in spans)))
            self.tally.sample(
                ("edited", name),
                sample_value(document.id, self.seed),
                document.id,
                lambda spans=spans: {  # type: ignore[misc]
                    **_about(document),
                    "pieces": edited_pieces(document.text, decision.steps, spans[0][0]),
                },
            )

    def _edited_spans(self, document: Document) -> Iterator[tuple[str, tuple[int, int]]]:
        """What is edited and by what: labels that are cut, by kind where they have kinds, and personal data."""
        for name in self.cut:
            spans, kinds = pairs(spans_of(document, name)), spans_of(document, f"{name}_kinds")
            known = self.names.get(f"{name}_kinds", {})
            for place, span in enumerate(spans):
                kind = str(kinds[place]) if kinds is not None and len(kinds) == len(spans) else ""
                yield (f"{name}: {known.get(kind, kind)}" if kind else name), span
        kinds = spans_of(document, "personal_data_kinds") or ()
        for span, number in zip(pairs(spans_of(document, "personal_data")), kinds):
            if number in self.placeholders:
                yield f"redact: {self.names.get('personal_data_kinds', {}).get(str(number), str(number))}", span

    def _add_copies(self, decision: Decision) -> None:
        document = decision.document
        labels: Mapping[str, Any] = document.labels
        cluster = labels.get(CLUSTER)
        if cluster is None:
            return
        stays = decision.stays is not None
        self.tally.count("sizes", (str(labels.get("cluster_size") or 0),), (1, int(stays)))
        if cluster not in self.frame.clusters:
            return
        kind = str(labels.get("duplicate_kind") or FIRST)
        self.tally.count("clusters", (cluster, kind), (1,))
        self.tally.sample(
            ("cluster", cluster, kind),
            sample_value(document.id, self.seed),
            document.id,
            lambda: {
                **_about(document),
                "kind": kind,
                "similarity": labels.get("similarity"),
                "stays": stays,
                "characters": len(document.text),
                "text": document.text[: COMPARED if cluster in self.frame.compared else EXCERPT],
            },
        )


def _about(document: Document) -> dict[str, Any]:
    return {"id": document.id, "source": document.source, "url": document.url, "language": language_of(document)}
