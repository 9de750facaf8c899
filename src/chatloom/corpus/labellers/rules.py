"""Labels `rule_*`: what the rules for documents measure (length, symbols, stop words, lines, repetition)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from chatloom.corpus.labelling import Labeller, NoSettings
from chatloom.corpus.record import Document
from chatloom.corpus.text.rules import RULE_LABEL, RULES, measure_texts

MEASURED_CHARACTERS = 4_000_000  # of a longer text the rules look at the beginning, so that one page cannot take hours


class Rules(Labeller[NoSettings]):
    """The 24 measures of `corpus/rules.py`, each label `rule_<name>`; Chinese and Japanese are counted by characters.

    Source: Rae et al. 2021, "Scaling Language Models" (Gopher), appendix A1.1 and table A1, and what `rules.py` says
    of the others. Usual limits are in `corpus/settings.py` (PRESETS) and `rules.py`.
    """

    name = "rule"
    version = sum(rule.version for rule in RULES.values())
    columns: Mapping[str, pa.DataType] = {RULE_LABEL + name: pa.float64() for name in RULES}
    Settings = NoSettings
    needs: ClassVar[tuple[str, ...]] = ("language",)

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Measures of each document; of a text of more than four million characters those of its beginning."""
        texts = [document.text[:MEASURED_CHARACTERS] for document in documents]
        languages = [str(document.labels.get("language") or "") for document in documents]
        values = {RULE_LABEL + name: found.tolist() for name, found in measure_texts(texts, languages).items()}
        return [{name: found[row] for name, found in values.items()} for row in range(len(documents))]
