"""Stage `tokens`: documents and a vocabulary -> memory-mapped token stores, one for training and one held out."""

from __future__ import annotations

import shutil

from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.record import Document, read_documents
from chatloom.errors import ChatloomError
from chatloom.progress import progress
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.store import TokenWriter
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.costs import BYTES_A_TOKEN, document_bytes

TRAIN, HELD_OUT = "train", "held_out"
BATCH = 256


class TokensSettings(Settings):
    """How documents become token sequences."""

    mark_ends: bool = Field(True, description="put <|endoftext|> before and after every document")


def run(context: Context) -> None:
    """Write `train.*` and, where documents are held out, `held_out.*`; the vocabulary is copied beside them."""
    source = context.artifact("vocabulary").path
    vocabulary = Vocabulary.load(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, context.path / name)
    sides: dict[str, list[Document]] = {TRAIN: [], HELD_OUT: []}
    for artifact in context.artifacts("documents"):
        for document in read_documents(artifact.file("documents.parquet")):
            sides[TRAIN if document.labels.get("split", TRAIN) == TRAIN else HELD_OUT].append(document)
    if not sides[TRAIN]:
        raise ChatloomError(
            f"stage `{context.name}`: no document is on the training side; lower `split.held_out_share`"
        )
    settings: TokensSettings = context.settings
    ends = [vocabulary.eos_id] if settings.mark_ends else []
    counts = {}
    with progress(sum(map(len, sides.values())), unit="documents", label=context.name, quiet=context.quiet) as bar:
        for side, documents in sides.items():
            if not documents:
                continue
            with TokenWriter(context.path, vocabulary, name=side) as writer:
                for first in range(0, len(documents), BATCH):
                    part = documents[first : first + BATCH]
                    for document, ids in zip(part, vocabulary.encode_batch([d.text for d in part]), strict=True):
                        writer.add(document.id, document.source, [*ends, *ids, *ends], document.labels)
                    bar.advance(len(part))
            counts[side] = {"documents": len(documents), "tokens": writer.n_tokens}
    write_json(context.path / "counts.json", counts)
    context.metrics.update(counts)


def plan(context: PlanContext) -> Plan:
    """Tokens from bytes at four bytes a token."""
    size = document_bytes(context, "documents")
    vocabulary = context.plans.get("vocabulary")
    lines: tuple[Line, ...] = (
        Line("corpus_tokens", size / BYTES_A_TOKEN, "tokens"),
        Line("disk", size / 2, "bytes"),
        Line("time", size / 5e6, "s"),
    )
    if vocabulary is not None and vocabulary.value("vocabulary"):
        lines += (Line("vocabulary", vocabulary.value("vocabulary"), "entries", exact=True),)
    return Plan(lines)


STAGE = Stage(
    kind="tokens",
    about="documents + vocabulary -> memory-mapped token stores",
    version=1,
    settings=TokensSettings,
    inputs={
        "documents": Input("text", kinds=("documents",), many=True),
        "vocabulary": Input("vocabulary", kinds=("vocabulary",)),
    },
    output="tokens",
    run=run,
    plan=plan,
)
