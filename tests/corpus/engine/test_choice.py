"""Where work runs: in processes, but for little work that nothing can kill in the stage's own."""

from __future__ import annotations

from pathlib import Path

from chatloom.corpus.engine import choice
from chatloom.corpus.engine.choice import EngineSettings, is_little, make_engine
from chatloom.corpus.engine.local import InProcess, LocalPool


def test_little_work_needs_no_processes_unless_they_are_asked_for() -> None:
    assert isinstance(make_engine(EngineSettings(), here=True), InProcess)
    assert isinstance(make_engine(EngineSettings()), LocalPool)
    asked = make_engine(EngineSettings(workers=3), here=True)
    assert isinstance(asked, LocalPool)
    assert asked.processes == 3


def test_what_is_little_depends_on_all_shards_together(tmp_path: Path) -> None:
    shards = [tmp_path / name for name in "ab"]
    for shard in shards:
        shard.write_bytes(bytes(choice.LITTLE // 2))
    assert is_little(shards)
    shards[1].write_bytes(bytes(choice.LITTLE // 2 + 1))
    assert not is_little(shards)
