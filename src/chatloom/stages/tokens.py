"""Stage `tokens`: documents, conversations and a vocabulary -> memory-mapped token stores, training and held out."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from chatloom.artifact import verified, write_json
from chatloom.corpus.record import LABEL, Document, count_rows, document_files, read_documents, schema_of
from chatloom.dialogue.storage import read_conversations
from chatloom.dialogue.template import ChatTemplate
from chatloom.errors import ChatloomError
from chatloom.progress import Progress, progress
from chatloom.settings import Settings
from chatloom.stage import Context, Input, Line, Plan, PlanContext, Stage
from chatloom.tokens.megatron import read_megatron
from chatloom.tokens.reserved import SENTINELS
from chatloom.tokens.store_writer import CONVERSATION, TokenWriter
from chatloom.tokens.vocabulary import Vocabulary
from chatloom.training.costs import BYTES_A_TOKEN, document_bytes, texts_of

TRAIN, HELD_OUT = "train", "held_out"
BATCH = 256
INPUTS = ("documents", "conversations", "megatron")


class TokensSettings(Settings):
    """How documents become token sequences."""

    mark_ends: bool = Field(True, description="put <|endoftext|> before and after every document")
    conversation_loss: Literal["assistant", "all"] = Field(
        "assistant",
        description="assistant: learn the assistant's words only, as instruction tuning does; all: every token",
    )


class _Stores:
    """The two stores being written; each is begun with its first document, so that an empty one is not there."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, labels: Mapping[str, pa.DataType], masked: bool) -> None:
        self._folder, self._vocabulary, self._labels, self._masked = folder, vocabulary, labels, masked
        self._open: dict[str, TokenWriter] = {}
        self._stack = ExitStack()

    def __getitem__(self, side: str) -> TokenWriter:
        if side not in self._open:
            masked = self._masked and side == TRAIN
            writer = TokenWriter(self._folder, self._vocabulary, name=side, labels=self._labels, masked=masked)
            self._open[side] = self._stack.enter_context(writer)
        return self._open[side]

    def __enter__(self) -> _Stores:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def counts(self) -> dict[str, dict[str, int]]:
        """Documents and tokens of each store."""
        order = [side for side in (TRAIN, HELD_OUT) if side in self._open]
        return {
            side: {"documents": self._open[side].n_documents, "tokens": self._open[side].n_tokens} for side in order
        }


def run(context: Context) -> None:
    """Write `train.*` and, where documents are held out, `held_out.*`; the vocabulary is copied beside them.

    One pass in bounded memory, whatever the corpus' size.
    """
    settings: TokensSettings = context.settings
    source = verified(context.artifact("vocabulary")).path
    vocabulary = Vocabulary.load(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, context.path / name)
    files = [file for artifact in context.artifacts("documents") for file in document_files(artifact.path)]
    talks = [item.file("sft.parquet") for item in context.artifacts("conversations")]
    total = count_rows((*files, *talks))
    masked = bool(talks) and settings.conversation_loss == "assistant"
    with (
        progress(total or None, unit="documents", label=context.name, quiet=context.quiet) as bar,
        _Stores(context.path, vocabulary, label_types(files), masked) as stores,
    ):
        skipped = _add_documents(files, vocabulary, settings, stores, bar)
        skipped += _add_conversations(talks, vocabulary, settings, stores, bar)
        skipped += _add_megatron(context.files("megatron"), stores, bar)
    counts = stores.counts()
    if TRAIN not in counts:
        raise ChatloomError(
            f"stage `{context.name}`: no document is on the training side; lower `split.held_out_share`"
        )
    write_json(context.path / "counts.json", counts)
    context.metrics.update(counts)
    if skipped:
        context.metrics["nothing_to_learn"] = skipped


def label_types(files: Iterable[Path]) -> dict[str, pa.DataType]:
    """Arrow types of all labels in some files of documents; raises ChatloomError where one label has two types."""
    found: dict[str, tuple[pa.DataType, Path]] = {}
    for file in files:
        for field in schema_of(file):
            if not field.name.startswith(LABEL):
                continue
            name = field.name[len(LABEL) :]
            kind, first = found.setdefault(name, (field.type, file))
            if pa.types.is_null(kind):
                found[name] = (field.type, file)
            elif kind != field.type and not pa.types.is_null(field.type):
                raise ChatloomError(f"label `{name}` is {kind} in {first} and {field.type} in {file}; make them alike")
    return {name: kind for name, (kind, _) in found.items()}


def _add_documents(
    files: Iterable[Path], vocabulary: Vocabulary, settings: TokensSettings, stores: _Stores, bar: Progress
) -> int:
    """Documents with their labels, to the side that their label `split` names; returns how many have no token."""
    ends = [vocabulary.eos_id] if settings.mark_ends else []
    skipped = 0
    documents = (document for file in files for document in read_documents(file))
    for part in _batches(documents):
        for document, ids in zip(part, vocabulary.encode_batch([d.text for d in part]), strict=True):
            side = TRAIN if (document.labels.get("split") or TRAIN) == TRAIN else HELD_OUT
            tokens = [*ends, *ids, *ends]
            if tokens:
                stores[side].add(document.id, document.source, tokens, document.labels)
            else:
                skipped += 1
        bar.advance(len(part))
    return skipped


def _add_conversations(
    files: Iterable[Path], vocabulary: Vocabulary, settings: TokensSettings, stores: _Stores, bar: Progress
) -> int:
    """Conversations as instruction tuning renders them; returns how many have nothing that carries loss."""
    template, skipped = ChatTemplate(), 0
    for file in files:
        for talk in read_conversations(file):
            rendered = template.render(talk.messages, vocabulary)
            mask = rendered.mask if settings.conversation_loss == "assistant" else None
            if mask is None or any(mask[1:]):
                stores[TRAIN].add(talk.id, talk.source, rendered.ids, kind=CONVERSATION, mask=mask)
            else:
                skipped += 1
            bar.advance(1)
    return skipped


def _add_megatron(files: Iterable[Path], stores: _Stores, bar: Progress) -> int:
    """Documents of Megatron-LM's indexed datasets, named by either file; returns how many have no token."""
    skipped = 0
    for prefix in dict.fromkeys(file.with_suffix("") for file in files):
        for number, ids in enumerate(read_megatron(prefix)):
            if len(ids):
                stores[TRAIN].add(f"{prefix.name}:{number}", prefix.name, ids)
            else:
                skipped += 1
            bar.advance(1)
    return skipped


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    while part := list(islice(documents, BATCH)):
        yield part


def plan(context: PlanContext) -> Plan:
    """Tokens from bytes at four bytes a token."""
    given = [name for name in INPUTS if context.inputs.get(name) or f"{name}.0" in context.plans]
    if not given:
        return Plan(refusals=("has nothing to read; give `documents`, `conversations` or `megatron`",))
    size = document_bytes(context, "documents")
    tokens = size / BYTES_A_TOKEN
    if "conversations" in given:
        talks = texts_of(context, "conversations", "records")
        tokens += talks.count * talks.tokens
    indexed = context.inputs.get("megatron", [])
    tokens += sum(file.with_suffix(".bin").stat().st_size / 2 for file in indexed if file.with_suffix(".bin").is_file())
    vocabulary = context.plans.get("vocabulary")
    lines: tuple[Line, ...] = (
        Line("corpus_tokens", tokens, "tokens"),
        Line("disk", 2 * tokens, "bytes"),
        Line("time", tokens * BYTES_A_TOKEN / 5e6, "s"),
    )
    if vocabulary is not None and vocabulary.value("vocabulary"):
        lines += (Line("vocabulary", vocabulary.value("vocabulary"), "entries", exact=True),)
    lines += tuple(line for line in (vocabulary.lines if vocabulary is not None else ()) if line.name == SENTINELS)
    return Plan(lines)


STAGE = Stage(
    kind="tokens",
    about="documents + vocabulary -> memory-mapped token stores",
    version=2,
    settings=TokensSettings,
    inputs={
        "documents": Input("text", kinds=("documents", "selection"), required=False, many=True),
        "conversations": Input(
            "dialogues to mix into pretraining, told by `kind`", kinds=("conversations",), required=False, many=True
        ),
        "megatron": Input("token files of Megatron-LM (.idx beside .bin)", required=False, many=True, files=True),
        "vocabulary": Input("vocabulary", kinds=("vocabulary",)),
    },
    output="tokens",
    run=run,
    plan=plan,
)
