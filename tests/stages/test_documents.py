"""Promises of the plan of the stage `documents`: packed pages cost what they hold, not what they weigh on the disk."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from chatloom.corpus.reading import compression
from chatloom.stage import Plan, PlanContext
from chatloom.stages.documents import STAGE

PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(6).compress}


def planned(*pages: Path) -> Plan:
    """The plan for some files or folders."""
    assert STAGE.plan is not None
    return STAGE.plan(PlanContext(STAGE.settings(), {"pages": list(pages)}, {}, 2, 5e10))


def records(count: int, seed: int = 0) -> bytes:
    """JSON lines of text that packs about as well as people's."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(3000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    texts = (" ".join(generator.choices(words, weights, k=200)) for _ in range(count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("suffix", sorted(PACK))
@pytest.mark.parametrize("count", [1, 4000])
def test_a_packed_file_plans_as_much_as_the_same_text_unpacked(tmp_path: Path, suffix: str, count: int) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"b.jsonl{suffix}"
    plain.write_bytes(records(count))
    packed.write_bytes(PACK[suffix](plain.read_bytes()))
    assert packed.stat().st_size < 0.75 * plain.stat().st_size
    for name in ("bytes", "disk", "time"):
        assert planned(packed).value(name) == pytest.approx(planned(plain).value(name), rel=0.2)
    lines = {line.name: line for line in planned(packed).lines}
    assert (lines["read"].value, lines["read"].exact) == (packed.stat().st_size, True)
    assert not lines["bytes"].exact


def test_a_folder_of_plain_and_packed_files_is_estimated_from_a_few_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = 0
    for number in range(60):
        data = records(1 + number % 40, seed=number)
        suffix = ("", ".gz", ".zst")[number % 3]
        (tmp_path / f"{number}.jsonl{suffix}").write_bytes(PACK[suffix](data) if suffix else data)
        true += len(data)
    opened: list[Path] = []

    def counting(path: Path, mode: str) -> BinaryIO:
        opened.append(path)
        return path.open(mode)  # type: ignore[return-value]

    monkeypatch.setattr(compression, "open", counting, raising=False)
    assert planned(tmp_path).value("bytes") == pytest.approx(true, rel=0.2)
    assert 2 <= len(opened) <= 16


def test_a_file_that_is_damaged_or_not_packed_at_all_is_still_planned(tmp_path: Path) -> None:
    data = records(300)
    whole, cut, misnamed = (tmp_path / f"{name}.jsonl.gz" for name in ("whole", "cut", "misnamed"))
    whole.write_bytes(gzip.compress(data))
    cut.write_bytes(gzip.compress(data)[: whole.stat().st_size // 2])
    misnamed.write_bytes(data)
    (tmp_path / "empty.jsonl.gz").write_bytes(b"")
    assert planned(cut).value("bytes") == pytest.approx(len(data) / 2, rel=0.2)
    assert planned(misnamed).value("bytes") == len(data)
    assert planned(tmp_path / "empty.jsonl.gz").value("bytes") == 0
