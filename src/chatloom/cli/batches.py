"""What a pretrained model was trained on, step by step: rows, their documents and labels, and the tokens themselves.

Rebuilt from the settings and the seed in the model's manifest and from the token stores that it names; nothing is
recorded during training, because the order of reading is a pure function of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from chatloom import artifact
from chatloom.artifact import Artifact
from chatloom.cli.frame import console
from chatloom.cli.samples import context_length, labels_text, tokens_text
from chatloom.errors import ChatloomError
from chatloom.training.metrics import read_metrics

if TYPE_CHECKING:  # these load torch, which a look at documents does not need
    from chatloom.tokens.mixture import Row
    from chatloom.tokens.vocabulary import Vocabulary
    from chatloom.training.pretraining_data import PretrainingData


def training_data(item: Artifact) -> tuple[PretrainingData, Vocabulary]:
    """What a `pretrain` stage read; raises ChatloomError for another stage's model or token stores that have gone."""
    from chatloom.stages.pretrain import PretrainSettings, read_data
    from chatloom.tokens.vocabulary import Vocabulary

    manifest = item.manifest
    if manifest.get("stage") != "pretrain":
        made = f"`{manifest.get('stage')}`" if manifest.get("stage") else "another program"
        raise ChatloomError(
            f"{item.path}: was made by {made}; steps are known of what stage `pretrain` made (of any other training "
            "stage, --samples and --skip show the examples)"
        )
    folders = []
    for entry in manifest.get("inputs", {}).get("tokens", []):
        folders.append((item.path.resolve() / entry["path"]).resolve())
        found = artifact.load(folders[-1], "tokens").fingerprint if artifact.exists(folders[-1]) else "nothing"
        if found != entry["fingerprint"]:
            raise ChatloomError(
                f"{item.path}: was trained on {folders[-1]} with fingerprint {entry['fingerprint']}, there is {found} "
                "now; put back what was there"
            )
    if not folders:
        raise ChatloomError(f"{item.path}: does not say where its tokens are; give the finished model of the stage")
    vocabulary = Vocabulary.load(folders[0])
    settings = PretrainSettings.parse(manifest["settings"], where=str(item.path))
    return read_data(folders, vocabulary, settings, context_length(item.path), manifest["seed"]), vocabulary


def show_rows(item: Artifact, n: int, skip: int) -> None:
    """Print `n` rows from the `skip`-th of the run on, token by token."""
    data, vocabulary = training_data(item)
    _title("rows of training, in order")
    for place, row in enumerate(data.mixture.rows(skip, n), skip):
        _print(_row_text(data, place, row, vocabulary))


def show_step(item: Artifact, step: int, n: int) -> None:
    """Print what an optimizer step (from 1, as in metrics.jsonl) read: its documents with labels, `n` rows in full."""
    data, vocabulary = training_data(item)
    if not 1 <= step <= data.n_steps:
        raise ChatloomError(f"--step {step}: {item.path} was trained in steps 1 to {data.n_steps}")
    rows = data.rows(step - 1)
    first = data.sizes.start(step - 1)
    _title(f"step {step} of {data.n_steps}: rows {first} to {first + len(rows) - 1}{_what_became(item.path, step)}")
    for place, row in enumerate(rows, first):
        _print(_row_text(data, place, row, None))
    for place, row in enumerate(rows[:n], first):
        _title(f"row {place} in full")
        _print(_row_text(data, place, row, vocabulary))


def _what_became(folder: Path, step: int) -> str:
    """Whether a step was skipped, or undone when the run went back to an earlier checkpoint."""
    rows = read_metrics(folder / "metrics.jsonl").rows
    for row in rows:
        if row.get("rolled_back_to", step) < step <= row["step"]:
            return f", undone: step {row['step']} went back to the weights after step {row['rolled_back_to']:.0f}"
    return ", skipped" if any(row["step"] == step and row.get("skipped") for row in rows) else ""


def _row_text(data: PretrainingData, place: int, row: Row, vocabulary: Vocabulary | None) -> Text:
    """Head of a row and of each of its pieces; with a vocabulary also the tokens."""
    text = Text(f"row {place}", style="dim")
    if data.plan is not None:
        name = data.mixture.source(row.source).name
        text.append(f": {name}, pass {row.epoch + 1}, stage `{data.mixture.names[row.stage]}`")
    pieces = data.mixture.pieces(row)
    entries = data.documents.describe([piece.document for piece in pieces])
    for piece, entry in zip(pieces, entries, strict=True):
        head = f"\n  {entry['id']} ({labels_text(entry['labels'])}), tokens {piece.start} to {piece.end} "
        text.append(f"{head}of {entry['length']}")
        if data.denoising is not None:
            text.append(f", denoised by {data.denoising.noises[piece.noise].name}")
        if vocabulary is not None:
            segment = data.segment(row, piece)
            weights = [0.0, *segment.supervised.tolist()[1:]]
            text.append("\n").append(tokens_text(segment.tokens.tolist(), weights, vocabulary))
    return text


def store_documents(folder: Path, name: str, skip: int, n: int) -> Iterator[Text]:
    """Documents of a token store with their labels, token by token."""
    from chatloom.tokens.store import TokenStore
    from chatloom.tokens.vocabulary import Vocabulary

    vocabulary = Vocabulary.load(folder)
    store = TokenStore(folder, vocabulary, name=name)
    numbers: Sequence[int] = range(skip, min(skip + n, len(store)))
    for number, entry in zip(numbers, store.describe(numbers), strict=True):
        text = Text(f"{entry['id']} ({labels_text(entry['labels'])}): {entry['length']} tokens\n", style="dim")
        weights = [0.0, *store.weights(number).tolist()[1:]]
        yield text.append(tokens_text(store.read(number).tolist(), weights, vocabulary))


def _title(text: str) -> None:
    console().print(Text(f"\n{text}", style="bold"), soft_wrap=True)


def _print(text: Text) -> None:
    console().print(text, soft_wrap=True)
