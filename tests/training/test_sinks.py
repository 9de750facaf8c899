"""Promises of the other places for metrics: they get every number, and whatever they do, training does not notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy_run import Toy

from chatloom.errors import ChatloomError
from chatloom.settings import digest
from chatloom.training import loop, sinks
from chatloom.training.metrics import read_metrics
from chatloom.training.sinks import TRIES, fed, sinks_of

IDENTITY = {"stage": "sft", "seed": 3, "settings": {"lr": 0.1}}


class Kept:
    """A sink that keeps what it is given, and does something besides."""

    def __init__(self, besides: Callable[[int], object] = lambda step: None) -> None:
        self.besides, self.rows, self.closed = besides, dict[int, dict[str, float]](), False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.besides(step)
        self.rows[step] = dict(values)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(sinks, "say", found.append)
    return found


def run_with(opened: Mapping[str, Callable[[], Any]], path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(loop, "sinks_of", lambda *_: opened)
    toy = Toy(path)
    toy.fit(6)
    assert [row["step"] for row in read_metrics(path / "metrics.jsonl").rows] == [1, 2, 3, 4, 5, 6]
    return toy


def test_a_sink_gets_the_numbers_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    kept = Kept()
    run_with({"kept": lambda: kept}, tmp_path, monkeypatch)
    rows = read_metrics(tmp_path / "metrics.jsonl").rows
    assert kept.rows == {row["step"]: {k: v for k, v in row.items() if k != "step"} for row in rows}
    assert kept.closed
    assert said == []


def test_a_sink_that_hangs_does_not_hold_up_a_step_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    release, kept = threading.Event(), Kept()
    monkeypatch.setattr(sinks, "fed", lambda opened: fed(opened, seconds=0.4))
    monkeypatch.setattr(loop, "fed", sinks.fed)
    hanging = Kept(lambda step: release.wait(60))

    def never_opens() -> Kept:
        release.wait(60)
        return Kept()

    begun = time.monotonic()
    run_with({"hanging": lambda: hanging, "closed door": never_opens, "kept": lambda: kept}, tmp_path, monkeypatch)
    assert time.monotonic() - begun < 30
    assert sorted(kept.rows) == [1, 2, 3, 4, 5, 6]  # and the one beside them is served
    assert hanging.rows == {}
    assert {text.split()[1] for text in said} == {"hanging", "closed"}
    release.set()


def test_a_sink_that_raises_is_told_once_and_given_up_after_some_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def refuse(step: int) -> None:
        raise ConnectionError("the network is down")

    def once(step: int) -> None:
        if step == 2:
            raise ConnectionError("a moment")

    def no_key() -> Kept:
        raise RuntimeError("no API key\nlong explanation")

    shaky = Kept(once)
    run_with({"shaky": lambda: shaky, "keyless": no_key, "refusing": lambda: Kept(refuse)}, tmp_path, monkeypatch)
    assert sorted(shaky.rows) == [1, 3, 4, 5, 6]
    assert shaky.closed
    assert sorted(said) == [
        "WARNING: keyless could not be opened (no API key); it gets no more metrics, which are all in metrics.jsonl",
        "WARNING: metrics do not reach refusing (the network is down); training goes on",
        "WARNING: metrics do not reach shaky (a moment); training goes on",
    ]
    said.clear()
    with fed({"refusing": lambda: Kept(refuse)}) as give:
        for step in range(TRIES + 5):
            give(step, {"loss": 1.0})
    assert said[-1].startswith("WARNING: refusing failed too often")


def test_giving_a_row_takes_no_time_whatever_the_sink_does(said: list[str]) -> None:
    release = threading.Event()
    with fed({"hanging": lambda: Kept(lambda step: release.wait(60))}, seconds=0.1) as give:
        begun = time.thread_time()
        for step in range(sinks.WAITING + 5_000):  # more than the queue takes
            give(step, {"loss": 1.0, "lr": 0.1})
        assert time.thread_time() - begun < 5.0
    release.set()
    assert "did not take all metrics" in said[-1]


def test_tensorboard_files_hold_every_number_also_of_a_resumed_run(tmp_path: Path) -> None:
    event_files = pytest.importorskip("tensorboardX.proto.event_pb2")
    settings = {"checkpoint_every": 2, "sinks": ["tensorboard"]}
    Toy(tmp_path, **settings).fit(3)  # as if it had died after step 3, of which step 2 is saved
    Toy(tmp_path, **settings).fit(5)
    found: dict[tuple[str, int], float] = {}
    for file in sorted((tmp_path / "tensorboard").iterdir(), key=lambda item: item.name):
        for data in records(file.read_bytes()):
            event = event_files.Event.FromString(data)
            if event.session_log.status == 1:  # START: what an earlier file has from this step on does not count
                found = {key: value for key, value in found.items() if key[1] < event.step}
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    rows = read_metrics(tmp_path / "metrics.jsonl").rows
    assert {step for _, step in found} == {1, 2, 3, 4, 5}
    for row in rows:
        assert found["loss", row["step"]] == pytest.approx(row["loss"])
        assert found["seconds", row["step"]] == pytest.approx(row["seconds"])


def records(content: bytes) -> list[bytes]:
    """What a TFRecord file holds: length (8 bytes), its checksum (4), data, their checksum (4)."""
    found, place = [], 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        found.append(content[place + 12 : place + 12 + length])
        place += 16 + length
    return found


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_trackers_are_called_as_they_want_to_be(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    fake = SimpleNamespace(
        **{
            name: (lambda *given, _name=name, **named: calls.append((_name, given, named)))
            for name in ("init", "log", "finish")
        }
    )
    monkeypatch.setattr(sinks, "import_module", lambda name: fake)
    monkeypatch.setattr(sinks, "find_spec", lambda name: True)
    opened = sinks_of([package], tmp_path / "mine" / "sft.partial", 0, IDENTITY)
    with fed(opened) as give:
        give(1, {"loss": 2.0, "note": "text"})
    own = {"id": digest(IDENTITY)[:16]} if package == "wandb" else {}
    config = {"stage": "sft", "seed": 3, "lr": 0.1}
    shown = {"project": "chatloom", "name": "mine/sft", "config": config, "resume": "allow", **own}
    assert calls == [("init", (), shown), ("log", ({"loss": 2.0},), {"step": 1}), ("finish", (), {})]


def test_a_sink_whose_package_is_missing_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    toy = Toy(tmp_path, sinks=["wandb"])
    with pytest.raises(ChatloomError, match=r"loop.sinks names wandb.*install chatloom\[wandb\], or leave wandb out"):
        toy.fit()
    assert toy.units == []
