"""Promises of metrics.jsonl: survives kills, has each step once, never a half row."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chatloom.training.metrics import MetricsError, MetricsFile, read_metrics, truncate_after


def write(path: Path, steps: range, attempt: int = 1) -> None:
    with MetricsFile(path) as file:
        for step in steps:
            file.append(step, loss=10.0 / (step + 1), attempt=attempt)


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.append(1, loss=np.float32(2.5), sample="你好\u2028 </script>", lr=3e-4, parts=[1, 2.5], by={"en": 1.0})
        file.append(1, kind="held_out", bits_per_byte=1.5)
        file.append(2, loss=math.nan, grad_norm=math.inf, low=-math.inf, skipped=True, none=None)
    metrics = read_metrics(path)
    assert metrics.rows[0] == {
        "step": 1, "loss": 2.5, "sample": "你好\u2028 </script>", "lr": 3e-4, "parts": [1, 2.5], "by": {"en": 1.0},
    }  # fmt: skip
    assert math.isnan(metrics.rows[2]["loss"])
    assert (metrics.rows[2]["grad_norm"], metrics.rows[2]["low"]) == (math.inf, -math.inf)
    assert metrics.column("bits_per_byte", kind="held_out") == ([1], [1.5])
    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_every_row_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, loss=1.0)
    assert len(read_metrics(file.path).rows) == 1
    file.close()


def test_a_killed_writer_leaves_all_its_finished_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal, sys; from chatloom.training.metrics import MetricsFile\n"
        "file = MetricsFile(sys.argv[1])\n"
        "for step in range(50): file.append(step, loss=1.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -9
    assert len(read_metrics(path).rows) == 50


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3', b"\xff\xfe\x00", b"{", b"\x00" * 100])
def test_a_torn_last_line_is_counted_and_cut_before_the_next_row(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    with path.open("ab") as file:
        file.write(torn)
    before = read_metrics(path)
    assert (len(before.rows), before.torn_lines) == (3, 1)
    with MetricsFile(path) as again:
        assert again.torn_lines == 1
        again.append(3, loss=1.0)
    after = read_metrics(path)
    assert [row["step"] for row in after.rows] == [0, 1, 2, 3]
    assert after.torn_lines == 0


def test_a_torn_end_longer_than_one_read_is_cut_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(2))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    MetricsFile(path).close()
    assert path.stat().st_size == size


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step"')
    MetricsFile(path).close()
    assert path.read_bytes() == b""


def test_of_two_attempts_at_a_step_the_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(5), attempt=1)
    write(path, range(3, 7), attempt=2)
    metrics = read_metrics(path)
    assert [(row["step"], row["attempt"]) for row in metrics.rows] == [
        (0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2),
    ]  # fmt: skip
    assert metrics.replaced_rows == 2


def test_a_resumed_run_writes_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(whole, range(20))
    write(resumed, range(13))
    with resumed.open("ab") as file:
        file.write(b'{"step": 13, "l')
    with MetricsFile(resumed) as file:
        assert file.truncate_after(9) == 3
        for step in range(10, 20):
            file.append(step, loss=10.0 / (step + 1), attempt=1)
    assert resumed.read_bytes() == whole.read_bytes()


def test_truncating_to_before_the_first_step_empties_and_a_missing_file_stays_missing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert truncate_after(path, 5) == 0
    assert not path.exists()
    assert read_metrics(path).rows == []
    write(path, range(3))
    assert truncate_after(path, -1) == 3
    assert path.read_bytes() == b""


def test_truncating_in_vain_leaves_the_file_untouched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    before = path.stat()
    assert truncate_after(path, 2) == 0
    assert path.stat().st_ino == before.st_ino


def test_lines_that_are_no_row_in_the_middle_are_counted_not_fatal(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n[1]\n{"loss": 2}\n{"step": true}\n\n{"step": 2}\n', encoding="utf-8")
    metrics = read_metrics(path)
    assert ([row["step"] for row in metrics.rows], metrics.torn_lines) == ([1, 2], 4)


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(1, loss=1.0)
    real = os.write
    calls = []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append(2, loss=1.0)
    monkeypatch.undo()
    file.append(2, loss=0.5)
    file.close()
    assert (len(read_metrics(file.path).rows), read_metrics(file.path).torn_lines) == (2, 0)


def test_a_value_that_is_no_metric_is_refused_by_name(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        with pytest.raises(MetricsError, match=r"row\.grad.* is a ndarray"):
            file.append(1, grad=np.zeros(3))
    assert read_metrics(file.path).rows == []
