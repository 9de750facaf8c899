"""Promises of finding steps that went wrong: what counts as a spike; all ranks and resumed runs agree on it."""

from __future__ import annotations

import json
import math
import random
import statistics
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from planned_loss import Planned, batch_of, trainer_of

from chatloom.training.anomalies import FEWEST, FILE, WINDOW, AnomalyLog, Watch, judge, modified_z
from chatloom.training.metrics import read_metrics
from chatloom.training.parallel.team import Team
from chatloom.training.parallel.world import World


def calm(n: int, level: float = 3.0) -> list[float]:
    """A loss that wavers by about 1 % around its level."""
    draw = random.Random(n)
    return [level * (1 + 0.02 * (draw.random() - 0.5)) for _ in range(n)]


def test_the_score_is_that_of_iglewicz_and_hoaglin() -> None:
    # Median 5, deviations 4 3 2 1 0 1 2 3 4 with median 2: M(9) = 0.6745 * 4 / 2.
    assert modified_z(9.0, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == pytest.approx(1.349)
    assert modified_z(1.0, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == pytest.approx(-1.349)
    # For a normal distribution it is the ordinary z-score, and a tenth of wild values does not change that much.
    draw = random.Random(0)
    values = [draw.gauss(10.0, 2.0) for _ in range(20_000)]
    assert modified_z(16.0, values) == pytest.approx(3.0, rel=0.02)
    assert modified_z(16.0, [*values, *[1e9] * 2000]) == pytest.approx(3.0, rel=0.2)
    mean, deviation = statistics.fmean([*values, 1e9]), statistics.stdev([*values, 1e9])
    assert (16.0 - mean) / deviation < 0.01  # which the ordinary one does not survive


def test_numbers_that_hardly_differ_do_not_make_the_next_one_a_spike() -> None:
    assert modified_z(5.1, [5.0] * 100) == pytest.approx(0.1 / (0.01 * 5.0))
    assert modified_z(0.0, [0.0] * 100) == 0.0
    assert modified_z(1e-9, [0.0] * 100) == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "gradient norm"])
def test_what_is_no_number_is_found_at_any_time_and_any_threshold(bad: float, name: str) -> None:
    values = {"loss": 1.0, "gradient norm": 1.0, name: bad}
    for threshold in (0.0, 20.0):
        found = judge(values, {}, threshold)
        assert found is not None
        assert found.z is None
        assert found.reason == f"the {name} is {bad}"


def test_a_spike_is_found_upwards_only_and_after_enough_steps_only() -> None:
    values = {"loss": 9.0, "gradient norm": 1.0}
    norms = calm(FEWEST, 1.0)
    assert judge(values, {"loss": calm(FEWEST - 1), "gradient norm": norms}, 20.0) is None
    found = judge(values, {"loss": calm(FEWEST), "gradient norm": norms}, 20.0)
    assert found is not None
    assert found.z == modified_z(9.0, calm(FEWEST))
    assert found.reason.startswith("the loss is 9, ")
    assert judge({**values, "loss": 0.1}, {"loss": calm(FEWEST), "gradient norm": norms}, 20.0) is None
    assert judge(values, {"loss": calm(FEWEST), "gradient norm": norms}, 0.0) is None
    found = judge({"loss": 3.0, "gradient norm": 50.0}, {"loss": calm(FEWEST), "gradient norm": norms}, 20.0)
    assert found is not None
    assert "gradient norm" in found.reason


def test_the_window_holds_the_last_good_steps_and_survives_json() -> None:
    watch = Watch(20.0)
    watch.enter("english")
    for i in range(WINDOW + 10):
        watch.accept({"loss": float(i)})
    assert list(watch.values["loss"]) == [float(i) for i in range(10, WINDOW + 10)]
    again = Watch(20.0)
    again.load(json.loads(json.dumps(watch.state())))
    assert again == watch
    again.accept({"loss": 1.0})
    assert len(again.values["loss"]) == WINDOW  # it has not become longer by that
    again.enter("english")
    assert again.values
    again.enter("code")
    assert not again.values  # what was usual there is not what is usual here


def test_a_planted_spike_is_not_stepped_on_and_does_not_change_what_counts_as_usual() -> None:
    trainer, module = trainer_of(lr=1e-6)
    trainer.watch = Watch(20.0)
    told: list[tuple[int, str, dict]] = []
    trainer.record = lambda step, kind, **record: told.append((step, kind, record))
    trainer.describe = lambda batch: [{"document": f"{batch.total_weight:.0f} supervised tokens"}]
    losses = calm(FEWEST, 1.0)
    for loss in losses:
        trainer.update([batch_of(2)], Planned(module, [loss]))
    weight, window = module.weight.item(), trainer.watch.state()
    # Two micro-batches, the second 20 times as lossy.
    assert trainer.update([batch_of(2), batch_of(3)], Planned(module, [1.0, 20.0])) == {"skipped": 1.0}
    assert (module.weight.item(), trainer.watch.state()) == (weight, window)
    ((step, kind, record),) = told
    assert (step, kind) == (FEWEST + 1, "skipped")
    assert record["rows"] == [{"document": "3 supervised tokens"}]
    assert record["loss"] == pytest.approx((2 * 1.0 + 3 * 20.0) / 5, rel=1e-3)
    assert record["z_score"] == modified_z(record["loss"], window["values"]["loss"])
    assert trainer.update([batch_of(2)], Planned(module, [1.0]))["loss"] == pytest.approx(1.0, rel=1e-3)


def test_a_description_that_fails_does_not_end_the_run() -> None:
    trainer, module = trainer_of()
    told: list[dict] = []
    trainer.record = lambda step, kind, **record: told.append(record)
    trainer.describe = lambda batch: [{"document": [][1]}]
    assert trainer.update([batch_of(2)], Planned(module, [math.nan])) == {"skipped": 1.0}
    assert told[0]["rows"] == [{"error": "could not be described: list index out of range"}]


def test_a_loss_that_is_no_number_on_one_rank_is_skipped_on_all() -> None:
    barrier, told = threading.Barrier(2), [{}, {}]

    class Threads(World):
        """Two threads that tell each other what processes would."""

        def gather(self, value: Any) -> list[Any]:
            told[self.rank] = value
            barrier.wait(10)
            found = list(told)
            barrier.wait(10)
            return found

    trainers = [trainer_of() for _ in range(2)]
    results: dict[int, list[dict[str, float]]] = {}

    def run(rank: int) -> None:
        trainer, module = trainers[rank]
        trainer.team = Team(Threads(size=2, rank=rank))
        plans = [[1.0], [math.nan] if rank == 1 else [1.0], [1.0]]
        results[rank] = [trainer.update([batch_of(2 + rank)], Planned(module, plan)) for plan in plans]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results[0][1] == results[1][1] == {"skipped": 1.0}
    for rank in range(2):
        assert [trainers[rank][0].updates, trainers[rank][0].skipped] == [3, 1]
    # And the loss of a good step is that of all ranks together.
    assert results[0][0]["loss"] == results[1][0]["loss"] == pytest.approx(1.0)
    assert results[0][0]["seen"] == results[1][0]["seen"]


def test_the_log_is_there_only_when_there_is_something_in_it_and_forgets_what_will_be_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AnomalyLog(tmp_path, 0)
    assert not (tmp_path / FILE).exists()
    log(5, "skipped", reason="the loss is nan", loss=math.nan, rows=[{"document": "d1", "text": "文"}])
    log(7, "skipped", reason="the loss is inf")
    log(7, "rolled back", checkpoint=4)
    rows = read_metrics(tmp_path / FILE).rows
    assert [(row["step"], row["kind"]) for row in rows] == [(5, "skipped"), (7, "skipped"), (7, "rolled back")]
    assert math.isnan(rows[0]["loss"])
    assert rows[0]["rows"][0]["text"] == "文"
    AnomalyLog(tmp_path, 6)
    assert [row["step"] for row in read_metrics(tmp_path / FILE).rows] == [5]


def test_what_is_watched_is_the_same_with_any_number_of_threads() -> None:
    # Medians of sorted numbers: no sum whose order could matter.
    values = torch.randn(WINDOW, generator=torch.Generator().manual_seed(0)).tolist()
    assert len({modified_z(9.0, random.Random(i).sample(values, WINDOW)) for i in range(20)}) == 1
