"""Promises of `chatloom doctor`: it looks at the machine, and its proof of kill and resume can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatloom import doctor
from chatloom.artifact import Artifact
from chatloom.errors import ChatloomError


def test_a_machine_that_runs_the_tests_is_fit(tmp_path: Path) -> None:
    found = {item.name: item for item in doctor.examine(tmp_path / "not" / "yet", toy=False)}
    assert set(found) == {"Python", "torch", "device", "memory", "disk"}
    assert found["Python"].verdict == "good"
    assert "MB/s" in found["disk"].text
    assert list(tmp_path.iterdir()) == []  # the probe file is gone


def test_a_full_disk_and_little_memory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        free = available = 10**6
        total = 10**9

    monkeypatch.setattr("shutil.disk_usage", lambda path: Small)
    monkeypatch.setattr("psutil.virtual_memory", lambda: Small)
    found = {item.name: item.verdict for item in doctor.examine(tmp_path, toy=False)}
    assert (found["disk"], found["memory"]) == ("bad", "note")


def _model(weights: str) -> Artifact:
    return Artifact(Path("x"), {"files": {"model.safetensors": {"sha256": weights}, "config.json": {"sha256": "0"}}})


@pytest.mark.parametrize(("resumed", "verdict"), [("same", "good"), ("other", "bad")])
def test_other_weights_after_a_kill_are_a_bad_finding(
    monkeypatch: pytest.MonkeyPatch, resumed: str, verdict: str
) -> None:
    monkeypatch.setattr(doctor, "prepare_toy", lambda folder: None)
    monkeypatch.setattr(doctor, "kill_toy", lambda folder, name: 10)
    monkeypatch.setattr(doctor, "train_toy", lambda folder, name: _model("same" if name == "whole" else resumed))
    assert doctor._kill_and_resume().verdict == verdict


def test_a_child_that_fails_is_a_bad_finding_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "prepare_toy", lambda folder: None)
    finding = doctor._kill_and_resume()
    assert finding.verdict == "bad"
    assert "failed with exit code 1" in finding.text
    assert "tokens" in finding.text


def test_weights_of_an_artifact_without_any_are_refused() -> None:
    with pytest.raises(ChatloomError, match=r"holds no weights; it holds config\.json"):
        doctor.weights(Artifact(Path("x"), {"files": {"config.json": {"sha256": "0"}}}))


def test_a_killed_toy_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    doctor.prepare_toy(tmp_path)
    assert doctor.kill_toy(tmp_path, "killed") >= 10
    resumed: Any = doctor.train_toy(tmp_path, "killed")
    whole = doctor.train_toy(tmp_path, "whole")
    assert resumed.manifest["attempts"] == 2
    assert doctor.weights(resumed) == doctor.weights(whole)
