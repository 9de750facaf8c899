"""Stage `tokenizer`: documents (and conversations) -> a byte-level BPE vocabulary, and how well it compresses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from chatloom.artifact import write_json
from chatloom.corpus.record import read_documents
from chatloom.dialogue.storage import read_conversations
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.costs import document_bytes


class TokenizerSettings(Settings):
    """What the vocabulary looks like."""

    vocab_size: int = Field(4096, description="entries, six special tokens and the 256 bytes included")
    digits: int = Field(2, ge=1, le=3, description="longest group of digits in one token")
    han: int = Field(
        0,
        ge=0,
        le=8,
        description="longest run of Han characters and kana in one token (0: any); 1 where there is little Chinese "
        "text, else the few phrases in it become tokens and a new wording is unreadable",
    )
    max_token_bytes: int = Field(24, ge=2, description="no entry is longer than this many bytes (8 Han characters)")
    min_count: int = Field(2, ge=1, description="a merge must be seen this often")
    allow_smaller: bool = Field(False, description="accept fewer entries when the text supports no more")
    conversation_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="learn from this share of the conversations; repeated phrases else become one token",
    )
    sample_bytes: int = Field(200_000_000, ge=1, description="learn from at most this much text")


def run(context: Context) -> None:
    """Train on the training side of the documents; held-out text is only measured."""
    settings: TokenizerSettings = context.settings
    vocabulary = Vocabulary.train(
        _limited(_training_texts(context), settings.sample_bytes),
        settings.vocab_size,
        digits=settings.digits,
        han=settings.han,
        max_token_chars=settings.max_token_bytes,
        min_count=settings.min_count,
        allow_smaller=settings.allow_smaller,
    )
    vocabulary.save(context.path)
    context.metrics.update(measure(vocabulary, context))
    write_json(context.path / "report.json", dict(context.metrics))


def measure(vocabulary: Vocabulary, context: Context) -> dict[str, object]:
    """Bytes per token on held-out documents (training ones when nothing is held out) and on conversations."""
    found: dict[str, object] = {"vocab_size": vocabulary.size}
    held_out = [text for split, text in _documents(context) if split != "train"]
    samples = {
        "documents": held_out or [text for _, text in _documents(context)],
        "conversations": list(_conversation_texts(context)),
    }
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for name, texts in samples.items():
        ids = [np.asarray(item) for item in vocabulary.encode_batch(texts)] if texts else []
        n_tokens, n_bytes = sum(len(item) for item in ids), sum(len(text.encode("utf-8")) for text in texts)
        if n_tokens:
            found[f"bytes_per_token_{name}"] = round(n_bytes / n_tokens, 4)
            counts += np.bincount(np.concatenate(ids), minlength=vocabulary.size)
    used = counts[6:]
    found["unused_entries_share"] = round(float((used == 0).mean()), 4)
    found["single_byte_share"] = round(float(counts[6:262].sum() / max(used.sum(), 1)), 4)
    return found


def _documents(context: Context) -> Iterator[tuple[str, str]]:
    for artifact in context.artifacts("documents"):
        for document in read_documents(artifact.file("documents.parquet")):
            yield str(document.labels.get("split", "train")), document.text


def _conversation_texts(context: Context) -> Iterator[str]:
    for artifact in context.artifacts("conversations"):
        for conversation in read_conversations(artifact.file("sft.parquet")):
            yield from (message.content for message in conversation.messages)


def _training_texts(context: Context) -> Iterator[str]:
    yield from (text for split, text in _documents(context) if split == "train")
    texts = list(_conversation_texts(context))
    count = round(len(texts) * context.settings.conversation_share)
    yield from (texts[i * len(texts) // count] for i in range(count))


def _limited(texts: Iterator[str], limit: int) -> Iterator[str]:
    used = 0
    for text in texts:
        if used >= limit:
            return
        used += len(text.encode("utf-8"))
        yield text


def plan(context: PlanContext) -> Plan:
    """Vocabulary size; time from 1 MB/s of text, what training on a few megabytes reaches."""
    settings: TokenizerSettings = context.settings
    if settings.vocab_size < 262:
        return Plan(refusals=(f"vocab_size is {settings.vocab_size}; six special tokens and 256 bytes need 262",))
    size = min(document_bytes(context, "documents"), settings.sample_bytes)
    lines = (Line("vocabulary", settings.vocab_size, "entries", exact=True), Line("time", size / 1e6, "s"))
    return Plan((*lines, Line("disk", 65.0 * settings.vocab_size, "bytes")))


STAGE = Stage(
    kind="tokenizer",
    about="documents -> byte-level BPE vocabulary",
    version=1,
    settings=TokenizerSettings,
    inputs={
        "documents": Input("text to learn from", kinds=("documents",), many=True),
        "conversations": Input("dialogues to learn from as well", kinds=("conversations",), required=False, many=True),
    },
    output="vocabulary",
    run=run,
    plan=plan,
)
