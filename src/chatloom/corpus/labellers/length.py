"""Labels `length_*`: how long a document is, in the units that budgets are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from chatloom.corpus.labelling import Labeller, NoSettings
from chatloom.corpus.record import Document


class Length(Labeller[NoSettings]):
    """Characters, UTF-8 bytes (a Chinese character has three) and lines; words are `rule_word_count`."""

    name = "length"
    version = 2
    columns: Mapping[str, pa.DataType] = {f"length_{unit}": pa.int64() for unit in ("characters", "bytes", "lines")}
    Settings = NoSettings

    def label(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """Lengths of each document; a line ends at `\\n`, and an empty text has none."""
        return [
            {
                "length_characters": len(document.text),
                "length_bytes": len(document.text.encode("utf-8", "surrogatepass")),
                "length_lines": document.text.count("\n") + 1 if document.text else 0,
            }
            for document in documents
        ]
