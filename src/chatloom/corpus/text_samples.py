"""Documents of artifacts as texts with their language and source, one side of the split: what tokenizers learn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from chatloom.artifact import Artifact
from chatloom.corpus.record import document_files, read_documents
from chatloom.tokens.sampling import Sampled

TRAIN = "train"
UNKNOWN = "und"  # the language of a document that has no label of one
Side = Literal["train", "held_out", "all"]


def document_texts(artifacts: Iterable[Artifact], side: Side = "all") -> Iterator[Sampled]:
    """Every document of some artifacts, in order, that is on a side; documents without a label `split` are training."""
    for artifact in artifacts:
        for file in document_files(artifact.path):
            for document in read_documents(file):
                training = str(document.labels.get("split") or TRAIN) == TRAIN
                if side == "all" or training == (side == TRAIN):
                    language = str(document.labels.get("language") or UNKNOWN)
                    yield Sampled(document.id, language, document.source, document.text)
