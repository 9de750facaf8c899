"""A run that is cut off, changed, unsorted or of another kind is named; it is never merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chatloom.corpus.duplicates import runs
from chatloom.corpus.duplicates.external_sort import external_sort, merge, merge_runs, open_runs
from chatloom.corpus.duplicates.runs import BLOCK, HEADER_BYTES, Run, RunError, RunWriter, first_unsorted
from chatloom.corpus.text.units import U64

N = 3 * BLOCK + 17


def records(n: int = N, seed: int = 0) -> U64:
    return np.random.default_rng(seed).integers(0, 1 << 64, (n, 2), dtype=np.uint64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    external_sort([records()], tmp_path / "a.run", "bands", ("key", "name"), "20x5")
    return tmp_path / "a.run"


def read_all(path: Path) -> U64:
    return np.concatenate([*merge([Run(path)])])


def test_what_is_written_is_read(path: Path) -> None:
    run = Run(path, "bands", "20x5")
    run.verify()
    assert (run.count, run.columns, len(run)) == (N, ("key", "name"), N)
    expected = records()[np.argsort(records()[:, 0])]
    assert np.array_equal(read_all(path), expected)
    low, high = int(expected[100, 0]), int(expected[5000, 0])
    assert np.array_equal(run.read(low, high), expected[100:5000])


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_a_run_opened_for_a_range_reads_the_same_and_keeps_only_its_part_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(runs, "TABLE_ROWS", rows_at_once)
    some = records(9 * BLOCK + 5)
    some[:, 0] //= np.uint64(1 << 50)  # 16,384 keys, several records each
    some[BLOCK : 4 * BLOCK, 0] = 8000  # one that fills blocks
    external_sort([some], tmp_path / "run", "bands", ("key", "name"))
    whole = Run(tmp_path / "run")
    for low, high in (
        (0, 1 << 64),
        (0, 1),
        (3000, 4000),
        (7999, 8001),
        (8000, 8001),
        (8001, 20_000),
        (20_000, 1 << 64),
    ):
        part = Run(tmp_path / "run", within=(low, high))
        assert np.array_equal(part.read(low, high), whole.read(low, high))
        assert np.array_equal(np.concatenate([some[:0], *merge([part], low, high)]), whole.read(low, high))
        assert len(part.firsts) <= len(whole.read(low, high)) // BLOCK + 2
    with pytest.raises(ValueError, match="opened for"):
        Run(tmp_path / "run", within=(0, 5)).read(0, 6)


def test_records_of_some_keys_are_all_found(tmp_path: Path) -> None:
    some = records(9 * BLOCK + 5)
    some[:, 0] //= np.uint64(1 << 50)
    some[BLOCK : 4 * BLOCK, 0] = 8000
    external_sort([some], tmp_path / "run", "bands", ("key", "name"))
    everything = Run(tmp_path / "run").read()
    first, last = int(everything[0, 0]), int(everything[-1, 0])
    for keys in ([], [8000], [first, last], list(range(0, 16_400, 7)), [first + 1, 8000, 8001, 99_999]):
        wanted = np.array(keys, np.uint64)
        expected = everything[np.isin(everything[:, 0], wanted)]
        assert np.array_equal(Run(tmp_path / "run").of(wanted), expected)


@pytest.mark.parametrize("size", [0, 100, HEADER_BYTES, HEADER_BYTES + 16, HEADER_BYTES + 16 * N, -1])
def test_a_truncated_file_is_named(path: Path, size: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:size])
    with pytest.raises(RunError, match=r"a\.run"):
        Run(path)


@pytest.mark.parametrize("place", [HEADER_BYTES, HEADER_BYTES + 16 * BLOCK + 3, HEADER_BYTES + 16 * N - 1])
def test_a_changed_byte_is_found_by_whoever_reads_its_block(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"a\.run.*block"):
        Run(path).verify()
    with pytest.raises(RunError, match=r"a\.run.*block"):
        read_all(path)


def test_a_changed_table_is_found_at_once(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 16 * N + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="table"):
        Run(path)


def write(path: Path, *parts: list[list[int]], dies: bool = False) -> None:
    with RunWriter(path, "bands", ("key", "name")) as writer:
        for part in parts:
            writer.append(np.array(part, np.uint64))
        if dies:
            raise KeyboardInterrupt


def test_a_writer_that_dies_leaves_no_valid_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "b", [[1, 2], [3, 4]], dies=True)
    with pytest.raises(RunError, match="not written to its end"):
        Run(tmp_path / "b")


@pytest.mark.parametrize("parts", [([[2, 0], [1, 0]],), ([[1, 5], [1, 4]],), ([[2, 0]], [[1, 0]])])
def test_unsorted_records_are_refused_by_the_writer(tmp_path: Path, parts: tuple[list[list[int]], ...]) -> None:
    with pytest.raises(ValueError, match=r"below the one before|out of order"):
        write(tmp_path / "b", *parts)


def test_unsorted_records_are_found_by_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatloom.corpus.duplicates.runs.first_unsorted", lambda _: None)
    with RunWriter(tmp_path / "b", "bands", ("key", "name")) as writer:
        writer.append(np.array([[1, 0], [3, 0], [2, 0], [4, 0]], np.uint64))
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"b: record 2 .*hash order"):
        Run(tmp_path / "b").read()


def test_the_first_unsorted_record_is_found_in_any_column() -> None:
    assert first_unsorted(np.array([[1, 1], [1, 2], [2, 0]], np.uint64)) is None
    assert first_unsorted(np.array([[1, 1], [1, 0], [0, 0]], np.uint64)) == 1
    assert first_unsorted(np.array([[1, 1], [2, 0], [0, 9]], np.uint64)) == 2


def test_runs_of_other_kinds_or_settings_are_not_merged(path: Path, tmp_path: Path) -> None:
    external_sort([records(10)], tmp_path / "c", "bands", ("key", "name"), "14x8")
    with pytest.raises(RunError, match=r"14x8.*20x5"):
        open_runs([path, tmp_path / "c"], "bands")
    with pytest.raises(RunError, match="14x8"):
        merge_runs([Run(path), Run(tmp_path / "c")], tmp_path / "d")
    with pytest.raises(RunError, match="holds `bands`"):
        Run(path, "pairs")
    with pytest.raises(RunError, match="no such file"):
        Run(tmp_path / "missing")
