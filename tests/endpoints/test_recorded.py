"""The file of replies: what is in it is found, what was cut off is mended, what is damaged is named."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from chatloom.endpoints import Recorded, Reply, Request
from chatloom.errors import ChatloomError


def reply(number: int, text: str = "text") -> Reply:
    return Reply(f"{number:064x}", text, "stop", 10, 20, "served", 2)


def test_what_is_written_is_found_when_the_file_is_opened_again(tmp_path: Path) -> None:
    replies = [reply(i, f"第{i}行\n\u2028 \x00 end") for i in range(300)]
    with Recorded(tmp_path / "r.jsonl") as recorded:
        for item in replies:
            recorded.add(item)
        recorded.add_failure(reply(999).key, 500, "oops", 3)
        assert recorded.get(replies[7].key) == replies[7]
    with Recorded(tmp_path / "r.jsonl") as recorded:
        assert [recorded.get(item.key) for item in replies] == replies
        assert recorded.get(reply(999).key) is None
        assert (len(recorded), recorded.calls, recorded.tokens) == (300, 603, 9000)


def test_a_record_holds_the_request_only_as_its_hash(tmp_path: Path) -> None:
    request = Request("m", (("user", "a secret question"),))
    with Recorded(tmp_path / "r.jsonl") as recorded:
        recorded.add(Reply(request.key, "text", "stop", 1, 2))
    [line] = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(line)) == {
        "key", "text", "finish", "prompt_tokens", "completion_tokens", "model", "attempts",
    }  # fmt: skip
    assert "secret" not in line


def test_a_file_cut_off_at_any_byte_loses_the_last_line_only(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Recorded(path) as recorded:
        for i in range(3):
            recorded.add(reply(i, "文"))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        with Recorded(path) as recorded:
            assert (len(recorded), recorded.torn) == (2, end - last)
            recorded.add(reply(2, "文"))
        assert path.read_bytes() == whole


def test_what_was_cut_off_leaves_nothing_behind_a_shorter_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"key": "' + b"x" * 5000)
    with Recorded(path) as recorded:
        recorded.add(reply(1))
    with Recorded(path) as recorded:
        assert (len(recorded), recorded.torn) == (1, 0)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Recorded(path) as recorded:
        for i in range(3):
            recorded.add(reply(i))
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b"{}\n", b"\n", lines[1][:20] + b"\n", b"[1]\n", b'{"key": "zz", "text": "", "finish": ""}\n'):
        path.write_bytes(lines[0] + bad + lines[2])
        with pytest.raises(ChatloomError, match="line 2: not a recorded reply"), Recorded(path):
            pass
    path.write_bytes(lines[0] + lines[2])
    with Recorded(path) as recorded:
        assert len(recorded) == 2


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with Recorded(tmp_path / "r.jsonl"), pytest.raises(ChatloomError, match="another process is writing"):
        with Recorded(tmp_path / "r.jsonl"):
            pass
    with Recorded(tmp_path / "r.jsonl"):
        pass


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    with Recorded(tmp_path / "r.jsonl") as recorded:
        threads = [
            threading.Thread(target=lambda first=first: [recorded.add(reply(first + i, "x" * i)) for i in range(50)])
            for first in range(0, 400, 50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Recorded(tmp_path / "r.jsonl") as recorded:
        assert all(recorded.get(reply(i).key) == reply(i, "x" * (i % 50)) for i in range(400))


def test_the_key_of_a_request_is_that_of_all_that_decides_the_reply() -> None:
    base = {"model": "m", "messages": (("user", "q"),), "max_tokens": 5}
    same = Request(**base, limit_field="max_completion_tokens")
    others = [
        Request(**{**base, **change})
        for change in (
            {}, {"model": "n"}, {"messages": (("user", "r"),)}, {"messages": (("system", "q"),)}, {"max_tokens": 6},
            {"temperature": 0.0}, {"top_p": 0.9}, {"stop": ("x",)}, {"seed": 1}, {"sample": 1}, {"extra": {"top_k": 2}},
            {"messages": (), "prompt": "q"},
        )
    ]  # fmt: skip
    assert len({request.key for request in others}) == len(others)
    assert same.key == others[0].key
    assert same.body()["max_completion_tokens"] == 5


def test_replies_of_another_file_are_taken_over_once_and_only_those_that_are_asked_for(tmp_path: Path) -> None:
    other, path = tmp_path / "other.jsonl", tmp_path / "r.jsonl"
    with Recorded(other) as recorded:
        for i in range(5):
            recorded.add(reply(i, "文"))
        recorded.add_failure(reply(6).key, 500, "oops", 3)
    before = other.read_bytes()
    other.write_bytes(before + b'{"key": "00')  # cut off by a kill
    wanted = {reply(i).key for i in (1, 3, 6)}
    with Recorded(path) as recorded:
        recorded.add(reply(3, "mine"))
        assert [recorded.take_over(other, wanted) for _ in range(2)] == [1, 0]
        assert recorded.get(reply(1).key) == reply(1, "文")
        assert recorded.get(reply(3).key) == reply(3, "mine")
        assert reply(6).key not in recorded
        assert (len(recorded), recorded.calls, recorded.tokens) == (2, 4, 60)
    assert other.read_bytes() == before + b'{"key": "00'
    with Recorded(path) as recorded:
        assert (len(recorded), recorded.calls) == (2, 4)
    other.write_bytes(b"{}\n" + before)
    with Recorded(path) as recorded, pytest.raises(ChatloomError, match=r"other.jsonl, line 1: not a recorded reply"):
        recorded.take_over(other, wanted)


def test_a_record_that_is_opened_twice_counts_its_calls_once(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path / "r.jsonl")
    with recorded:
        recorded.add(reply(1))
    with recorded:
        assert (len(recorded), recorded.calls, recorded.tokens) == (1, 2, 30)
