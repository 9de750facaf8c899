"""Chosen documents to a token store: megabytes of text a second of the stage `tokens`, and of its parts.

    python benchmarks/tokens.py [--data FOLDER] [--megabytes 20] [--vocab-size 16384] [--repeats 3] [--write]

Half of the text is English (novels and technical prose), half Chinese (histories and vernacular novels), by bytes. The
vocabulary is learnt from a tenth of it. `encode` is the vocabulary alone, `encode and write` the store's writer after
it, `stage` the stage `tokens` from Parquet files to memory-mapped ones. Medians of all in turn, processor time beside
wall time; the encoder uses all processors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from measure import Report, arguments, find, in_turn, records, write_lines

from chatloom import recipe
from chatloom.tokens.store_writer import TokenWriter
from chatloom.tokens.vocabulary import Vocabulary

TARGET = 5  # MB/s of text to tokens, two processors
SOURCES = (("en_novels_a", "en_peps", "en_novels_b"), ("zh_modern_history", "zh_vernacular_novels"))
BATCH = 256


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = arguments(__doc__ or "", repeats=3)
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    options = parser.parse_args()
    report = Report("tokenizers", "numpy", "pyarrow")
    texts = [text for names in SOURCES for text in some(options.data, names, options.megabytes * 5e5)]
    size = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_lines(folder / "texts.jsonl", [{"id": f"{n:06d}", "text": text} for n, text in enumerate(texts)])
        inputs: dict[str, Any] = {
            "documents": recipe.run_stage(
                "documents", {}, {"pages": [folder / "texts.jsonl"]}, folder / "d", quiet=True
            )
        }
        learnt = {
            "vocab_size": options.vocab_size,
            "sample_bytes": size // 10,
            "curve_points": 0,
            "allow_smaller": True,
        }
        inputs["vocabulary"] = recipe.run_stage("tokenizer", learnt, inputs, folder / "v", quiet=True)
        vocabulary = Vocabulary.load(inputs["vocabulary"].path)
        times = in_turn(
            {
                "encode": partial(encode, vocabulary, texts),
                "encode and write": partial(written, vocabulary, texts, folder),
                "stage": partial(staged, inputs, folder),
            },
            options.repeats,
        )
        n_tokens = sum(map(len, encode(vocabulary, texts)))
    results = {
        "megabytes": round(size / 1e6, 2),
        "documents": len(texts),
        "vocab_size": vocabulary.size,
        "bytes_a_token": round(size / n_tokens, 3),
        "target_megabytes_per_second": TARGET,
        "megabytes_per_second": {name: found.rates(size / 1e6, 2) for name, found in times.items()},
        "million_tokens_per_second": {name: found.rates(n_tokens / 1e6, 2) for name, found in times.items()},
    }
    report.finish(results, options)


def some(data: Path, names: tuple[str, ...], limit: float) -> Iterator[str]:
    """Texts of some files until there are `limit` bytes of them."""
    used = 0
    for row in chain.from_iterable(records(find(data, f"{name}.jsonl.gz")) for name in names):
        if used >= limit:
            return
        used += len(row["text"].encode())
        yield row["text"]


def encode(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    """All texts, a batch at a time."""
    return [ids for at in range(0, len(texts), BATCH) for ids in vocabulary.encode_batch(texts[at : at + BATCH])]


def written(vocabulary: Vocabulary, texts: list[str], folder: Path) -> None:
    """Encode, and append to a store."""
    with tempfile.TemporaryDirectory(dir=folder) as place, TokenWriter(Path(place), vocabulary) as writer:
        for number, ids in enumerate(encode(vocabulary, texts)):
            writer.add(str(number), "texts", ids)


def staged(inputs: dict[str, Any], folder: Path) -> None:
    """The whole stage."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        recipe.run_stage("tokens", {}, inputs, Path(place) / "tokens", quiet=True)


if __name__ == "__main__":
    main()
