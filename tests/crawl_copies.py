"""Documents with copies of all kinds, for tests of searches; and processes that are killed while they search."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from chatloom.corpus.record import Document, write_documents

CHATLOOM = [sys.executable, "-c", "import sys; from chatloom.cli import main; sys.exit(main(sys.argv[1:]))"]
FOOTER = "\nThis line is at the end of many documents of the crawl."
WORDS = [f"word{i}" for i in range(3000)]


def crawl(seed: int = 0, groups: int = 25) -> list[Document]:
    """Documents with copies of all kinds: equal, nearly equal, of one address, empty; a book and an excerpt of it."""
    rng = random.Random(seed)
    documents = []
    for number in range(groups):
        words = rng.choices(WORDS, k=rng.randint(3, 200))
        for copy in range(rng.choice([1, 1, 2, 4])):
            changed = [f"x{rng.random()}" if rng.random() < 0.02 * (copy % 3) else word for word in words]
            url = f"http://a.org/{number if rng.random() < 0.5 else rng.random()}"
            text = " ".join(changed) + FOOTER * (number % 3 == 0)
            documents.append(Document(f"d{number}-{copy}", text.upper() if copy == 3 else text, url=url))
    documents += [Document("empty-1", "", url="http://b.org/"), Document("empty-2", " ", url=None)]
    book = rng.choices(WORDS, k=3000)
    documents += [Document("book", " ".join(book)), Document("excerpt", " ".join(book[600:1800]))]
    rng.shuffle(documents)
    return documents


def write_shards(documents: list[Document], folder: Path, n: int) -> list[Path]:
    """The documents as n Parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(documents) // n)
    paths = [folder / f"{number:05d}-000.parquet" for number in range(n)]
    for number, path in enumerate(paths):
        write_documents(path, documents[number * size : (number + 1) * size], {})
    return paths


def tables(folder: Path) -> dict[str, bytes]:
    """Every Parquet file of a folder."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.parquet"))}


def killed_after(receipts: int, command: list[str], partial: Path) -> int:
    """Start a command, kill it (-9) with all its children once `partial` holds so many receipts; how many it holds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and count_receipts(partial) < receipts:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    return count_receipts(partial)


def count_receipts(folder: Path) -> int:
    """Tasks that are done; folders come and go while it counts."""
    found = (names for place, _, names in os.walk(folder) if Path(place).name == "receipts")
    return sum(name.endswith(".json") for names in found for name in names)
