"""What becomes of one document: all that speaks against it, or the document that stays, edited and on its side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chatloom.corpus.labellers.personal_data import KINDS
from chatloom.corpus.record import Document
from chatloom.corpus.selection.choice import COPIES, EDITS, Failure, SelectionSettings
from chatloom.corpus.selection.copies import BOOK, BOOK_SHARE, CLUSTER, COPY_OF, Chosen
from chatloom.corpus.selection.edits import edited, operations, pairs, redactions, united
from chatloom.corpus.split import HELD_OUT, TRAIN, split_value
from chatloom.errors import ChatloomError


@dataclass(frozen=True)
class Decision:
    """A document as it was, all that speaks against it in the order of deciding, and how it stays if nothing does.

    `steps` are the operations on its text (start, end, what stands there then).
    """

    document: Document
    failures: Sequence[Failure]
    stays: Document | None
    steps: Sequence[tuple[int, int, str]]


class Decider:
    """Decides about documents that were judged."""

    def __init__(self, settings: SelectionSettings, chosen: Chosen, seed: int) -> None:
        self.settings, self.chosen, self.seed = settings, chosen, seed
        self.placeholders = {number: settings.redact[kind] for number, kind in KINDS.items() if kind in settings.redact}

    def decide(self, document: Document, failures: Sequence[Failure], weight: float) -> Decision:
        """The decision about a document, given what was found against it and its weight.

        Copies and edits are looked at whatever was found before, so that it is known what they would take too. Raises
        ChatloomError for spans that are out of order.
        """
        failures = [*failures, *self._copied(document)]
        steps = self._operations(document)
        text = edited(document.text, steps) if steps else document.text
        if len(text) < self.settings.min_characters:
            detail = f"{len(text)} characters are left of {len(document.text)}"
            failures.append(Failure(EDITS, "too_short", f"{detail}; the limit is {self.settings.min_characters}"))
        if failures:
            return Decision(document, failures, None, steps)
        split = document.labels.get("split")
        if split is None:
            split = HELD_OUT if split_value(document.id, self.seed) < self.settings.held_out_share else TRAIN
        labels = {**document.labels, "split": split, "weight": weight, "n_characters": len(text)}
        return Decision(document, (), replace(document, text=text, labels=labels), steps)

    def _copied(self, document: Document) -> list[Failure]:
        """Why a document goes for another: for the book that holds its own, for the one that stays of its cluster."""
        if self.settings.copies != "one":
            return []
        labels, found = document.labels, []
        cluster, copy_of, similarity = (labels.get(name) for name in (CLUSTER, COPY_OF, "similarity"))
        if isinstance(copy_of, str) and self.chosen.goes_for_book(copy_of):
            detail = f"{labels.get(BOOK_SHARE):.1%} of its book {labels.get(BOOK)} is in {copy_of}"
            found.append(Failure(COPIES, BOOK, detail))
        kept = self.chosen.kept(cluster) if isinstance(cluster, str) else None
        if kept is not None and kept != document.id:
            like = f", Jaccard similarity to the first of it {similarity:.3f}" if isinstance(similarity, float) else ""
            kind = str(labels.get("duplicate_kind") or "duplicate")
            found.append(Failure(COPIES, kind, f"copy of {kept}, cluster {cluster}{like}"))
        return found

    def _operations(self, document: Document) -> list[tuple[int, int, str]]:
        try:
            cuts = united(pairs(spans_of(document, name)) for name in self.settings.cut)
            found, kinds = (spans_of(document, name) for name in ("personal_data", "personal_data_kinds"))
            new = redactions(found, kinds, self.placeholders)
        except ValueError as error:
            raise ChatloomError(f"document {document.id!r}: {error}") from None
        return operations(cuts, new) if cuts or new else []


def spans_of(document: Document, name: str) -> Sequence[int] | None:
    """A label that is a list; None where there is none."""
    value = document.labels.get(name)
    return value if isinstance(value, list) else None
