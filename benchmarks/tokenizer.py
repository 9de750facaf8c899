"""Vocabularies beside what one would use instead: training (time, memory) and encoding, interleaved, medians, ratios.

    python benchmarks/tokenizer.py [--repeats 5] [--megabytes 8] [--vocab-size 8192] [--text FILE ...] [--write]

Training: chatloom's own trainer and the `tokenizers` library learn the same merges from the same text, which is
checked; `rustbpe` and `sentencepiece` take part where they are installed (sentencepiece cuts text in its own way, so it
is not like for like). Every run is a process of its own, so that its peak memory is its own. Encoding: `tokenizers`
under chatloom, and `tiktoken` with the same merges where it is installed; the ids must be equal.
`--text`: JSON lines with a field `text` (.gz too) or plain text; without it, the sources of Python's standard library.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from chatloom import __version__
from chatloom.tokens.algorithms import train_bpe
from chatloom.tokens.layout import byte_of_letter
from chatloom.tokens.splitting import split_pattern
from chatloom.tokens.vocabulary import Vocabulary

Texts = list[str]
DIGITS, LONGEST = 2, 24


def main() -> None:
    """Measure, print one JSON document, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", choices=sorted(TRAINERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    texts, held = read_texts([Path(name) for name in options.text], int(options.megabytes * 1e6))
    if options.child:
        print(json.dumps(train_once(options.child, texts, held, options.vocab_size)))
        return
    result = {
        "date": date.today().isoformat(),
        "versions": {name: version(name) for name in ("tokenizers", "rustbpe", "sentencepiece", "tiktoken", "regex")},
        "chatloom": __version__,
        "threads": len(os.sched_getaffinity(0)),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "text": [Path(name).name for name in options.text] or "Python's standard library",
        "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 2),
        "vocab_size": options.vocab_size,
        "training": training(options.repeats),
        "encoding": encoding(texts, held, options.vocab_size, options.repeats),
    }
    print(json.dumps(result, indent=1))
    if options.write:
        target = Path(__file__).parent / "results" / f"tokenizer-{result['date']}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def training(repeats: int) -> dict[str, Any]:
    """Median seconds and peak memory of each trainer, in processes of their own, one after the other."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS if installed(name)}
    for _ in range(repeats):
        for name in runs:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--child", name], capture_output=True, text=True, check=True
            )
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    if runs["chatloom"][0]["merges"] != runs["tokenizers"][0]["merges"]:
        raise SystemExit("chatloom and tokenizers learnt different merges: not the same work")
    found = {
        name: {
            "seconds": round(statistics.median(run["seconds"] for run in rows), 3),
            "megabytes_of_memory": round(statistics.median(run["memory"] for run in rows)),
            "bytes_per_token": rows[0]["bytes_per_token"],
        }
        for name, rows in runs.items()
    }
    base = found["chatloom"]["seconds"]
    return {
        name: {**row, "times_chatlooms_seconds": round(row["seconds"] / base, 2)} for name, row in found.items()
    } | {"repeats": repeats}


def train_once(name: str, texts: Texts, held: Texts, size: int) -> dict[str, Any]:
    """One training in this process: seconds, growth of peak memory in MB, bytes per token on held-out text."""
    before = peak()
    begun = time.perf_counter()
    encode, merges = TRAINERS[name](texts, size)
    seconds = time.perf_counter() - begun
    memory = peak() - before
    tokens = sum(map(len, encode(held)))
    rate = round(sum(len(text.encode()) for text in held) / tokens, 4)
    return {"seconds": seconds, "memory": memory, "bytes_per_token": rate, "merges": merges}


def peak() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


Encode = Callable[[Texts], list[list[int]]]


def with_chatloom(texts: Texts, size: int) -> tuple[Encode, str]:
    """The own trainer."""
    made = train_bpe(texts, size, digits=DIGITS, max_token_bytes=LONGEST, allow_smaller=True)
    return made.encode_batch, made.sha256


def with_tokenizers(texts: Texts, size: int) -> tuple[Encode, str]:
    """The library that chatloom uses by default."""
    made = Vocabulary.train(texts, size, digits=DIGITS, max_token_chars=LONGEST, allow_smaller=True)
    return made.encode_batch, made.sha256


def with_rustbpe(texts: Texts, size: int) -> tuple[Encode, str]:
    """Entries beyond the 256 bytes as many as chatloom learns."""
    import rustbpe
    import tiktoken

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size - 6, pattern=split_pattern(DIGITS))
    ranks = {bytes(content): rank for content, rank in trainer.get_mergeable_ranks()}
    encoding_ = tiktoken.Encoding("benchmark", pat_str=split_pattern(DIGITS), mergeable_ranks=ranks, special_tokens={})
    return lambda held: [encoding_.encode_ordinary(text) for text in held], ""


def with_sentencepiece(texts: Texts, size: int) -> tuple[Encode, str]:
    """BPE over characters with a fallback to bytes, digits split, text as it is."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n")),
        model_writer=model, vocab_size=size, model_type="bpe", byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        max_sentence_length=20_000, minloglevel=2, num_threads=len(os.sched_getaffinity(0)),
    )  # fmt: skip
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return lambda held: [made.encode(text) for text in held], ""


TRAINERS: dict[str, Callable[[Texts, int], tuple[Encode, str]]] = {
    "chatloom": with_chatloom,
    "tokenizers": with_tokenizers,
    "rustbpe": with_rustbpe,
    "sentencepiece": with_sentencepiece,
}


def encoding(texts: Texts, held: Texts, size: int, repeats: int) -> dict[str, Any]:
    """Median MB/s of encoding the held-out text into lists of ids; the ids must be the same on all sides."""
    vocabulary = train_bpe(texts, size, digits=DIGITS, max_token_bytes=LONGEST, allow_smaller=True)
    sides: dict[str, Callable[[], list[list[int]]]] = {"chatloom": lambda: vocabulary.encode_batch(held)}
    if installed("tiktoken"):
        sides["tiktoken, same merges"] = _tiktoken(vocabulary, held)
    expected = vocabulary.encode_batch(held)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats + 1):
        for name, run in sides.items():
            begun = time.perf_counter()
            found = run()
            seconds[name].append(time.perf_counter() - begun)
            if found != expected:
                raise SystemExit(f"{name} gives other ids: not the same work")
    megabytes = sum(len(text.encode()) for text in held) / 1e6
    rates = {f"{name} MB/s": round(megabytes / statistics.median(times[1:]), 2) for name, times in seconds.items()}
    return {"megabytes": round(megabytes, 2), **rates, "repeats": repeats}


def _tiktoken(vocabulary: Vocabulary, held: Texts) -> Callable[[], list[list[int]]]:
    import tiktoken

    order = sorted(byte_of_letter())  # chatloom numbers bytes by their letters, and special tokens come first
    first = len(vocabulary.SPECIAL_TOKENS)
    ranks = {vocabulary.token_bytes(i): i for i in range(first, vocabulary.size)}
    if [vocabulary.token_bytes(first + i)[0] for i in range(256)] != [byte_of_letter()[letter] for letter in order]:
        raise SystemExit("the layout of the vocabulary has changed; bring this benchmark up to date")
    encoding_ = tiktoken.Encoding("same", pat_str=split_pattern(DIGITS), mergeable_ranks=ranks, special_tokens={})
    threads = len(os.sched_getaffinity(0))
    return lambda: encoding_.encode_ordinary_batch(held, num_threads=threads)


def read_texts(files: list[Path], limit: int) -> tuple[Texts, Texts]:
    """At most `limit` bytes of texts to learn from and, of every eleventh, held-out ones."""
    found: tuple[Texts, Texts] = ([], [])
    used = 0
    for number, text in enumerate(_all_texts(files)):
        found[number % 11 == 10].append(text)
        used += len(text.encode()) if number % 11 != 10 else 0
        if used >= limit:
            break
    if not found[1]:
        raise SystemExit("the text has fewer than eleven parts; give more files")
    return found


def _all_texts(files: list[Path]) -> Iterator[str]:
    if not files:
        for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            if "site-packages" not in file.parts:
                yield file.read_text(encoding="utf-8", errors="replace")
        return
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            if ".jsonl" in file.name:
                yield from (json.loads(line)["text"] for line in stream)
            else:
                whole = stream.read()
                yield from (whole[start : start + 10_000] for start in range(0, len(whole), 10_000))


def installed(name: str) -> bool:
    """Whether a package is there; rustbpe can encode nothing without tiktoken."""
    needed = {"rustbpe": ("rustbpe", "tiktoken")}.get(name, (name,))
    return all(importlib.util.find_spec(item) is not None for item in needed)


def version(name: str) -> str | None:
    """Of a package, None where it is not installed."""
    return metadata.version(name) if importlib.util.find_spec(name) is not None else None


if __name__ == "__main__":
    main()
