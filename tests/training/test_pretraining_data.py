"""Promises of what pretraining reads: sources by labels over several stores, exact coverage, one fixed order."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from chatloom.corpus.selection.expressions import ExpressionError
from chatloom.errors import ChatloomError
from chatloom.tokens.batch_sizes import BatchRamp
from chatloom.tokens.joined import JoinedStores
from chatloom.tokens.mixture_plan import MixtureError, MixtureSettings
from chatloom.tokens.store import TokenStore, TokenStoreError
from chatloom.tokens.store_writer import TokenWriter
from chatloom.training.pretraining_data import PretrainingData, owners, pretraining_data


class Sized:
    """A vocabulary that is nothing but a size."""

    def __init__(self, sha256: str = "ab") -> None:
        self.size, self.sha256 = 2**20, sha256


def write(folder: Path, first: int, count: int, labels: dict[str, Any], sha256: str = "ab") -> TokenStore:
    """Documents whose ids name document and place; labels are functions of the document's number."""
    types = {name: pa.array([make(0)]).type for name, make in labels.items()}
    with TokenWriter(folder, Sized(sha256), labels=types) as writer:  # type: ignore[arg-type]
        for n in range(first, first + count):
            ids = 1 + n * 100 + np.arange(2 + n * 7 % 50)
            writer.add(f"d{n}", "even" if n % 2 == 0 else "odd", ids, {name: make(n) for name, make in labels.items()})
    return TokenStore(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> JoinedStores:
    folder = tmp_path_factory.mktemp("stores")
    labels = {"language": lambda n: "zh" if n % 3 == 0 else "en", "quality": lambda n: n / 60}
    web = write(folder / "web", 0, 60, labels)
    wiki = write(folder / "wiki", 60, 20, {"language": lambda n: "zh"})
    return JoinedStores([web, wiki])


SOURCES = [
    {"name": "best", "where": "store == 0 and quality >= 0.5"},
    {"name": "zh", "where": 'language == "zh"'},
    {"name": "rest"},
]
STAGES = [
    {"name": "early", "tokens": 700, "weights": {"rest": 0.6, "zh": 0.4}},
    {"name": "stable", "tokens": 600, "weights": {"rest": 0.2, "zh": 0.8}},
    {"name": "annealing", "epochs": {"best": 1, "rest": 0.25}},
]


def data_of(stores: JoinedStores, mixture: dict[str, Any] | None = None, **changes: Any) -> PretrainingData:
    settings = MixtureSettings.parse({"sources": SOURCES, "stages": STAGES} if mixture is None else mixture)
    values = {"row_length": 16, "batch_rows": 5, "epochs": 1.0, "seed": 4, **changes}
    return pretraining_data(stores, settings, **values)


def test_documents_belong_to_the_first_source_whose_condition_holds(stores: JoinedStores) -> None:
    found = owners(stores, [source.get("where", "") for source in SOURCES])
    expected = [0 if 30 <= n < 60 else 1 if n % 3 == 0 or n >= 60 else 2 for n in range(80)]
    assert found.tolist() == expected
    assert owners(stores, ['source == "odd" and length > 40']).tolist() == [
        0 if n % 2 and 2 + n * 7 % 50 > 40 else -1 for n in range(80)
    ]
    with pytest.raises(ExpressionError, match="there is no label `langauge`; did you mean `language`"):
        owners(stores, ['langauge == "zh"'])


def test_several_stores_are_read_as_one(stores: JoinedStores) -> None:
    assert len(stores) == 80
    assert stores.read(70, 1, 3).tolist() == [7002, 7003]
    assert [row["id"] for row in stores.describe([70, 0, 59, 60])] == ["d70", "d0", "d59", "d60"]
    assert [row["store"] for row in stores.describe([70, 0, 59, 60])] == [1, 0, 0, 1]
    assert stores.describe([70])[0]["labels"] == {"language": "zh"}
    for document in (-1, 80):
        with pytest.raises(IndexError):
            stores.read(document)


def test_stores_of_two_vocabularies_are_refused(stores: JoinedStores, tmp_path: Path) -> None:
    other = write(tmp_path, 0, 3, {}, sha256="cd")
    with pytest.raises(TokenStoreError, match="make the tokens of both with one vocabulary"):
        JoinedStores([*stores.stores, other])


def targets(data: PretrainingData, steps: range) -> Counter[int]:
    found: Counter[int] = Counter()
    for step in steps:
        for batch in data.batches(step, 2, 0):
            found.update(batch.targets[batch.weights > 0].tolist())
    return found


def test_a_pass_predicts_every_token_of_its_sources_once_though_the_weights_change(stores: JoinedStores) -> None:
    stages = [
        {"name": "early", "epochs": {"rest": 0.3, "zh": 0.1}},
        {"name": "stable", "epochs": {"rest": 0.7, "zh": 0.5, "best": 0.5}},
        {"name": "annealing", "epochs": {"zh": 0.4, "best": 1.5}},
    ]
    data = data_of(stores, {"sources": SOURCES, "stages": stages})
    found = targets(data, range(data.n_steps))
    passes = [2 if 30 <= n < 60 else 1 for n in range(80)]
    expected = {1 + n * 100 + t: passes[n] for n in range(80) for t in range(1, 2 + n * 7 % 50)}
    assert found == expected


def test_the_plan_is_what_is_read(stores: JoinedStores) -> None:
    data = data_of(stores)
    read: Counter[tuple[int, int]] = Counter()
    for step in range(data.n_steps):
        for row in data.rows(step):
            read[row.stage, row.source] += sum(p.end - p.start - 1 for p in data.mixture.pieces(row))
    assert data.plan is not None
    names = [stage.name for stage in data.plan.stages]
    exact = {(c["stage"], c["source"]): c["tokens"] for c in data.mixture.counts()}
    assert exact == {(names[stage], SOURCES[source]["name"]): count for (stage, source), count in read.items()}
    for number, stage in enumerate(data.plan.stages):
        for source, tokens in enumerate(stage.tokens):
            assert read[number, source] == pytest.approx(tokens, abs=16)  # to within a row
    assert [sum(stage.rows) for stage in data.plan.stages] == [sum(c) for c in data.mixture._counts]


def test_micro_batches_do_not_change_what_a_step_holds(stores: JoinedStores) -> None:
    data = data_of(stores)
    [one], many = data.batches(3, 100, 0), data.batches(3, 2, 0)
    assert len(many) == 3
    assert Counter(t for batch in many for t in batch.targets[batch.weights > 0].tolist()) == Counter(
        one.targets[one.weights > 0].tolist()
    )
    assert sum(batch.n_tokens for batch in many) == one.n_tokens


def test_documents_in_no_source_are_counted(stores: JoinedStores) -> None:
    stages = [{"name": "only", "epochs": {"best": 1}}]
    data = data_of(stores, {"sources": SOURCES[:1], "stages": stages})
    assert data.unused_documents == 50
    assert data.unused_tokens == sum(2 + n * 7 % 50 for n in range(80) if not 30 <= n < 60)
    assert "in no source: 50 documents" in data.table()


def test_a_mixture_that_asks_for_too_much_is_refused(stores: JoinedStores) -> None:
    stages = [{"name": "only", "tokens": 1e6, "weights": {"zh": 1}}]
    with pytest.raises(MixtureError, match="`zh`: stages ask for 1 M tokens"):
        data_of(stores, {"sources": SOURCES, "stages": stages})
    nothing = [{"name": "none", "where": 'language == "fr"'}]
    with pytest.raises(MixtureError, match="no document fits"):
        data_of(stores, {"sources": nothing, "stages": [{"name": "only", "tokens": 100, "weights": {"none": 1}}]})


def test_a_checkpoint_of_other_data_is_noticed(stores: JoinedStores) -> None:
    data = data_of(stores)
    for step in range(data.n_steps + 1):
        state = json.loads(json.dumps(data.state(step)))
        data_of(stores).check_state(step, state)
    with pytest.raises(ChatloomError, match=r"the checkpoint after step 3 was reading .* start over"):
        data_of(stores, seed=5).check_state(3, json.loads(json.dumps(data.state(3))))
    with pytest.raises(ChatloomError, match="checkpoint after step 3"):
        data.check_state(3, data.state(4))


def test_without_a_mixture_all_documents_are_read_in_the_order_that_runs_have_always_had(tmp_path: Path) -> None:
    with TokenWriter(tmp_path, Sized()) as writer:  # type: ignore[arg-type]
        for n in range(500):
            writer.add(f"d{n}", "", np.ones(n * 7919 % 97 + 1, dtype=int))
    data = data_of(JoinedStores([TokenStore(tmp_path)]), {}, row_length=32, batch_rows=1, epochs=2, seed=11)
    assert data.plan is None
    assert data.table() == ""
    read = [[list(piece[:3]) for piece in data.mixture.pieces(row)] for row in data.mixture.rows(0, 10_000)]
    assert len(read) == 2 * 782
    assert hashlib.sha256(json.dumps(read).encode()).hexdigest() == RECORDED


@pytest.mark.parametrize("mixed", [False, True])
def test_a_growing_batch_reads_the_same_rows_in_the_same_order(stores: JoinedStores, mixed: bool) -> None:
    mixture = None if mixed else {}
    plain = data_of(stores, mixture, batch_rows=1)
    ramp = BatchRamp(first_rows=1, increment=2, share=0.4)
    data = data_of(stores, mixture, batch_rows=6, ramp=ramp)
    sizes = [len(data.rows(step)) for step in range(data.n_steps)]
    assert sizes[0] == 1
    assert {1, 3, 5, 6} <= set(sizes)
    assert sizes[:-1] == sorted(sizes[:-1])
    assert all(len(data.rows(step)) == data.sizes.rows(step) for step in range(data.n_steps - 1))
    read = [row for step in range(data.n_steps) for row in data.rows(step)]
    assert read == plain.mixture.rows(0, len(read))
    assert len(read) == data.mixture.n_rows
    if mixed:
        assert len(read) == plain.mixture.n_rows  # a mixture says how much is read
    else:
        assert abs(len(read) - plain.n_rows) <= 3  # to the nearest whole step
        assert sizes[-1] == 6
    other = data_of(stores, mixture, batch_rows=6)
    for step in range(data.n_steps + 1):
        state = json.loads(json.dumps(data.state(step)))
        data_of(stores, mixture, batch_rows=6, ramp=ramp).check_state(step, state)
    with pytest.raises(ChatloomError, match="checkpoint after step 2"):
        other.check_state(2, data.state(2))


def test_epochs_are_rounded_to_whole_steps(stores: JoinedStores) -> None:
    whole = data_of(stores, {}, batch_rows=1).n_rows
    for epochs in (0.001, 0.35, 1, 2.5):
        data = data_of(stores, {}, epochs=epochs)
        assert data.n_steps == max(1, round(epochs * whole / 5))
        assert all(len(data.rows(step)) == 5 for step in range(data.n_steps))
    assert data_of(stores, {}).padding < 0.05


RECORDED = "7b165271df70871a10c33bdbcb93c6b938195791052e8ca617c27287f02c192c"
