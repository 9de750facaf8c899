"""Promises of pretraining over bad data: a planted document is skipped and named, a broken run goes back or stops."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from toys import CPU, World, make_artifact
from typer.testing import CliRunner

from chatloom.artifact import Artifact
from chatloom.cli import app
from chatloom.corpus.record import Document, write_documents
from chatloom.errors import ChatloomError
from chatloom.tokens.packing import Batch
from chatloom.training.metrics import read_metrics
from chatloom.training.next_token_loss import NextTokenLoss
from chatloom.training.trainer import Terms

BAD = "bad"
SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_rows": 2,
    "optimizer": {"lr": 3e-3},
    "loop": {**CPU, "checkpoint_seconds": 1e6},
}


@pytest.fixture(scope="module")
def tokens(world: World, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Some hundred short documents that are much alike, and a long one of random characters."""
    folder = tmp_path_factory.mktemp("bad")
    draw = random.Random(1)
    texts = [f"the grass is green, the sky is blue and {draw.choice('abc')} is a letter." for _ in range(300)]
    documents = [Document(f"d{i}", text, source="toy", labels={"split": "train"}) for i, text in enumerate(texts)]
    noise = "".join(chr(draw.randrange(0x2600, 0x26FF)) for _ in range(40))
    documents.insert(150, Document(BAD, noise, source="toy", labels={"split": "train"}))
    documents.append(Document("held", texts[0], source="toy", labels={"split": "held_out"}))
    made = make_artifact(
        folder / "documents",
        "documents",
        lambda target: write_documents(target / "shards" / "0.parquet", documents, {"split": pa.string()}),
    )
    return world.run("tokens", folder / "tokens", inputs={"documents": [made.path]})


def pretrain(world: World, tokens: Artifact, out: Path, **changes: Any) -> tuple[Artifact, list[dict[str, Any]]]:
    made = world.run("pretrain", out, inputs={"tokens": tokens.path}, **{**SETTINGS, **changes})
    return made, read_metrics(made.path / "metrics.jsonl").rows


def told(made: Artifact) -> list[dict[str, Any]]:
    return read_metrics(made.path / "anomalies.jsonl").rows


def test_a_planted_document_is_skipped_and_named_with_the_beginning_of_its_text(
    world: World, tokens: Artifact, tmp_path: Path
) -> None:
    made, rows = pretrain(world, tokens, tmp_path / "run")
    skipped = [row["step"] for row in rows if "skipped" in row]
    assert skipped
    assert made.metrics["skipped_steps"] == len(skipped)
    records = told(made)
    assert [record["step"] for record in records] == skipped
    for record in records:
        assert record["rows"][0]["document"] == BAD  # the worst comes first
        assert record["rows"][0]["loss"] > 2 * record["rows"][-1]["loss"]
        assert all(0x2600 <= ord(sign) < 0x26FF or sign == "�" for sign in record["rows"][0]["text"])
        assert record["z_score"] >= 10
        assert "robust deviations above" in record["reason"]
    # What inspect says of that step is what was recorded of it.
    shown = CliRunner().invoke(app, ["inspect", str(made.path), "--step", str(skipped[0])])
    assert BAD in shown.output
    calm, _ = pretrain(world, tokens, tmp_path / "calm", anomalies={"spike": 0})
    assert calm.metrics["skipped_steps"] == 0
    assert not (calm.path / "anomalies.jsonl").exists()


def test_a_loss_that_stays_broken_goes_back_to_a_checkpoint_and_inspect_says_what_was_undone(
    world: World, tokens: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = NextTokenLoss.__call__
    calls = 0

    def planted(self: NextTokenLoss, batch: Batch) -> Terms:
        nonlocal calls
        calls += 1
        terms = plain(self, batch)
        return Terms(terms.total * math.nan) if 25 <= calls < 28 else terms

    with monkeypatch.context() as patch:
        patch.setattr(NextTokenLoss, "__call__", planted)
        made, rows = pretrain(world, tokens, tmp_path / "run", anomalies={"rollback_every": 10, "spike": 0})
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    (back,) = [row for row in rows if "rolled_back_to" in row]
    assert (back["step"], back["rolled_back_to"]) == (27, 20.0)
    assert made.metrics["rollbacks"] == 1
    shown = CliRunner().invoke(app, ["inspect", str(made.path), "--step", "23"])
    assert "undone: step 27 went back to the weights after step 20" in shown.output
    for step in (20, 28):
        assert "undone" not in CliRunner().invoke(app, ["inspect", str(made.path), "--step", str(step)]).output


def test_a_loss_that_never_recovers_ends_the_run_with_the_likely_causes(
    world: World, tokens: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = NextTokenLoss.__call__, 0

    def broken(self: NextTokenLoss, batch: Batch) -> Terms:
        nonlocal calls
        calls += 1
        terms = plain(self, batch)
        return Terms(terms.total * torch.inf) if calls >= 25 else terms

    monkeypatch.setattr(NextTokenLoss, "__call__", broken)
    with pytest.raises(ChatloomError, match=r"3 steps in a row.*the loss is inf.*went back to a checkpoint 2 times"):
        pretrain(world, tokens, tmp_path / "run", anomalies={"rollback_every": 10})
