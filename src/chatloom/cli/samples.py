"""Samples of what an artifact holds; training data as the exact tokens that training saw, marked by what carries loss.

Parquet files are known by their columns, so this shows any artifact that holds documents, conversations, preferences
or prompts, under whatever names. A model shows the data it was trained on, rendered by its own vocabulary and chat
template through the same function that its training stage used.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
from rich.text import Text

from chatloom.artifact import Artifact
from chatloom.cli.frame import console, relative
from chatloom.dialogue.record import Message
from chatloom.errors import ChatloomError

if TYPE_CHECKING:  # these load torch, which a look at documents does not need
    from chatloom.tokens.vocabulary import Vocabulary

_SHOWN_CHARACTERS = 1200
_SHOWN_TOKENS = 1000
_COLUMNS = {
    "documents": {"id", "text", "source", "metadata"},
    "dropped pages": {"id", "text", "stage", "reason"},
    "preferences": {"prompt", "answers", "ended"},
    "prompts": {"messages", "answer", "language"},
    "conversations": {"messages", "source"},
}
# What a model's training stage learns from.
_LEARNS_FROM = {"sft": "conversations", "reward": "preferences", "dpo": "preferences", "ppo": "prompts"}


def show(item: Artifact, n: int, skip: int, vocabulary: Path | None) -> None:
    """Print `n` samples of each sort of record that the artifact holds or, for a model, was trained on."""
    if item.kind == "model" and item.manifest.get("stage") == "pretrain":
        from chatloom.cli.batches import show_rows

        show_rows(item, n, skip)
        return
    wanted = _LEARNS_FROM.get(str(item.manifest.get("stage")))
    own = vocabulary or (item.path if (item.path / "tokenizer.json").is_file() else None)
    folders = [item.path]
    if item.kind in ("model", "reward-model", "checkpoint"):
        folders = [folder for folder in _inputs(item) if folder.is_dir()]
    for folder in folders:
        stores = [file.stem for file in sorted(folder.glob("*.bin")) if file.with_suffix(".json").is_file()]
        if item.kind == "tokens":
            from chatloom.cli.batches import store_documents

            for name in stores:
                _print(f"tokens in {relative(folder / name)}", store_documents(folder, name, skip, n))
        for place, files in _tables(folder):
            if stores and place.name.endswith(".docs.parquet"):
                continue  # the table of a store's documents
            kind = kind_of(files[0])
            if (wanted or kind) != kind or (wanted and _is_held_out(place)):
                continue
            title = f"{kind} in {relative(place)}" if kind else f"rows of {relative(place)}"
            records = itertools.chain.from_iterable(_records(file, kind, own, skip + n) for file in files)
            _print(title, itertools.islice(records, skip, skip + n))


def _tables(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(where, its Parquet files): each file of a folder, and each folder of shards in it, which are one table."""
    for file in sorted(folder.glob("*.parquet")):
        yield file, [file]
    for inner in sorted({file.parent for file in folder.glob("*/*.parquet")}):
        yield inner, sorted(inner.glob("*.parquet"))


def _print(title: str, texts: Iterable[Text]) -> None:
    console().print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    for text in texts:
        console().print(text, soft_wrap=True)
        console().print()


def _inputs(item: Artifact) -> Iterator[Path]:
    for entries in item.manifest.get("inputs", {}).values():
        for entry in entries:
            yield (item.path.resolve() / entry["path"]).resolve()


def _is_held_out(file: Path) -> bool:
    return any(word in file.stem for word in ("heldout", "held_out", "test", "answers", "dropped"))


def kind_of(file: Path) -> str | None:
    """documents, conversations, preferences or prompts by the columns of a Parquet file; None for any other."""
    columns = set(pq.read_schema(file).names)
    return next((kind for kind, needed in _COLUMNS.items() if needed <= columns), None)


def _records(file: Path, kind: str | None, vocabulary: Path | None, limit: int) -> Iterator[Text]:
    if kind is None:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=16):
            for row in batch.to_pylist():
                yield Text(_cut(json.dumps(row, ensure_ascii=False, default=str)))
    elif vocabulary is None or kind == "dropped pages":
        yield from _as_text(file, kind)
    else:
        yield from _as_tokens(file, kind, vocabulary, limit)


def _as_text(file: Path, kind: str) -> Iterator[Text]:
    from chatloom.corpus.record import read_documents, read_dropped
    from chatloom.dialogue import storage

    if kind == "documents":
        for document in read_documents(file):
            yield Text.assemble((f"{document.id} ({labels_text(document.labels)})\n", "dim"), _cut(document.text))
    elif kind == "dropped pages":
        for page in read_dropped(file):
            why = f"{page.id} (dropped by {page.stage}: {page.detail or page.reason})\n"
            yield Text.assemble((why, "dim"), _cut(page.text))
    elif kind == "preferences":
        for pair in storage.read_preferences(file):
            text = _messages(pair.id, pair.prompt)
            for rank, answer in enumerate(pair.answers, 1):
                end = "" if pair.ended[rank - 1] else " (never ended)"
                text.append(
                    f"\n{'best' if rank == 1 else f'rank {rank}'}{end}: ", style="green" if rank == 1 else "red"
                )
                text.append(_cut(answer))
            yield text.append(f"\n({pair.kind})" if pair.kind else "", style="dim")
    elif kind == "prompts":
        for prompt in storage.read_prompts(file):
            text = _messages(f"{prompt.id} ({prompt.kind}, {prompt.language})", prompt.messages)
            if prompt.answer is not None:
                text.append("\ntrue answer: ", style="green").append(_cut(prompt.answer))
            yield text
    else:
        for conversation in storage.read_conversations(file):
            yield _messages(conversation.id, conversation.messages)


def labels_text(labels: Mapping[str, object]) -> str:
    """Labels in words; what every rule measured is told by its number alone, since there are dozens."""
    known = {name: value for name, value in labels.items() if value is not None}
    shown = [f"{name} {value}" for name, value in known.items() if not name.startswith("rule_")]
    measured = [f"rules measured: {len(known) - len(shown)}"] if len(shown) < len(known) else []
    return ", ".join([*shown, *measured])


def _messages(title: str, messages: Sequence[Message]) -> Text:
    text = Text(title, style="dim")
    for message in messages:
        text.append(f"\n{message.role}: ", style="bold not dim").append(_cut(message.content), style="not dim")
    return text


def _as_tokens(file: Path, kind: str, folder: Path, limit: int) -> Iterator[Text]:
    from chatloom.corpus.record import read_documents
    from chatloom.dialogue import storage, template
    from chatloom.tokens.vocabulary import Vocabulary
    from chatloom.training.data import conversation_examples, preference_examples

    vocabulary = Vocabulary.load(folder)
    if kind == "documents":
        for document in read_documents(file):
            ids = [*vocabulary.encode(document.text), vocabulary.eos_id]
            yield Text(f"{document.id}: {len(ids)} tokens\n", style="dim").append(
                tokens_text(ids, [0.0, *[1.0] * (len(ids) - 1)], vocabulary)
            )
        return
    chat = (
        template.ChatTemplate.load(folder, vocabulary)
        if (folder / template.FILE).is_file()
        else template.ChatTemplate()
    )
    context = context_length(folder)
    if kind == "conversations":
        examples, rejected = conversation_examples(storage.read_conversations(file)[:limit], chat, vocabulary, context)
    elif kind == "preferences":
        examples, rejected = preference_examples(storage.read_preferences(file)[:limit], chat, vocabulary, context)
    else:
        for prompt in storage.read_prompts(file):
            rendered = chat.render(prompt.messages, vocabulary, open_reply=True)
            yield Text(f"{prompt.id}\n", style="dim").append(tokens_text(rendered.ids, rendered.mask, vocabulary))
        return
    for example in examples:
        text = Text(f"{example.id}: {example.n_tokens} tokens", style="dim")
        for segment in example.segments:
            text.append(f"\n{segment.role}" if segment.role else "").append("\n")
            text.append(tokens_text(segment.tokens.tolist(), segment.supervised.tolist(), vocabulary))
        yield text
    for item in rejected:
        yield Text(f"{item.id}: not trained on: {item.reason}", style="yellow")


def context_length(folder: Path) -> int:
    """Longest context of a model folder, in tokens; without a model there is no limit."""
    config = folder / "config.json"
    if not config.is_file():
        return 1 << 30
    value = json.loads(config.read_text(encoding="utf-8")).get("max_position_embeddings")
    if not isinstance(value, int):
        raise ChatloomError(f"{config}: has no `max_position_embeddings`; give the folder of a model")
    return value


def tokens_text(ids: Sequence[int], weights: Sequence[float], vocabulary: Vocabulary) -> Text:
    """Tokens one by one: those that carry loss on green (on a terminal) or in ⟦ ⟧ (elsewhere), the rest dim."""
    colours = console().is_terminal
    text = Text(style="not dim")
    for token, weight in itertools.islice(zip(ids, weights), _SHOWN_TOKENS):
        piece = _piece(token, vocabulary)
        if weight > 0:
            style = "black on green" if weight >= 1 else "black on yellow"
            text.append(piece if colours else f"⟦{piece}⟧", style=style)
        else:
            text.append(piece, style="dim")
        text.append("\n" if piece.endswith("⏎") else "·" if not colours or weight <= 0 else " ", style="dim")
    if len(ids) > _SHOWN_TOKENS:
        text.append(f" ... ({len(ids) - _SHOWN_TOKENS} tokens more)", style="dim")
    return text


def _piece(token: int, vocabulary: Vocabulary) -> str:
    if vocabulary.is_special(token):
        return vocabulary.token_bytes(token).decode("utf-8")
    # A token may be part of a character only; such bytes are shown as \xe4.
    return vocabulary.token_bytes(token).decode("utf-8", "backslashreplace").replace("\n", "⏎")


def _cut(text: str) -> str:
    extra = len(text) - _SHOWN_CHARACTERS
    return text if extra <= 0 else f"{text[:_SHOWN_CHARACTERS]} ... ({extra} characters more)"
