"""Promises of training on two processes: it ends where one process ends, and each holds what it is said to hold.

Both processes are started once (parallel_processes.py), do all cases, and what they returned is looked at here.
"""

from __future__ import annotations

from typing import Any

import pytest
from parallel_processes import results

REPLICATED = ("replicate", "replicate ranking", "zero1")
SHARDED = ("zero2", "zero3", "zero3 recompute", "zero3 untied", "zero3 ranking", "zero3 preference", "zero3 experts")
TENSOR = ("tensor", "tensor preference", "tensor ranking")
PIPELINE = ("gpipe", "1f1b", "pipeline untied", "pipeline ranking", "pipeline preference")
ALL = (*REPLICATED, *SHARDED, *TENSOR, *PIPELINE)


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "two-processes"
    return results(folder, 2, (*ALL, "gone back"))


@pytest.mark.parametrize("case", ALL)
def test_losses_gradients_weights_and_moments_are_those_of_one_process(case: str, found: dict[str, list[Any]]) -> None:
    first = found[case][0]
    for name in ("loss", "norm", "gradient", "weights", "moments", "metrics"):
        assert first[name] < 1e-5, name


@pytest.mark.parametrize("case", ALL)
def test_every_process_sees_the_same_losses(case: str, found: dict[str, list[Any]]) -> None:
    first, second = found[case]
    assert first["losses"] == second["losses"]
    assert len(set(first["losses"])) == len(first["losses"])


@pytest.mark.parametrize("case", ALL)
def test_what_is_gathered_fills_each_process_s_part_again_bit_by_bit(case: str, found: dict[str, list[Any]]) -> None:
    for one in found[case]:
        assert one["filled"]
        assert one["state filled"]


@pytest.mark.parametrize("case", ALL)
def test_the_first_process_can_go_on_alone_with_the_whole_model(case: str, found: dict[str, list[Any]]) -> None:
    first = found[case][0]
    assert first["restored"] == 0.0
    assert first["kind"] == ("RewardModel" if "ranking" in case else "Transformer")
    assert first["restored loss"] > 0


# Shares of what one process holds; the rest above a half is what is not shared out: norms, embeddings, uneven parts.
HELD = {
    "replicate": {"weights": 1.0, "weights in use": 1.0, "gradients": 1.0, "optimizer": 1.0},
    "zero1": {"weights": 1.0, "weights in use": 1.0, "gradients": 1.0, "optimizer": 0.5},
    "zero2": {"weights": 0.5, "weights in use": 1.0, "gradients": 0.5, "optimizer": 0.5},
    "zero3": {"weights": 0.5, "weights in use": 0.53, "gradients": 0.5, "optimizer": 0.5},
    "tensor": {"weights": 0.53, "weights in use": 0.53, "gradients": 0.53, "optimizer": 0.53},
    "1f1b": {"weights": 0.53, "gradients": 0.53, "optimizer": 0.53},
}


@pytest.mark.parametrize("case", HELD)
def test_each_process_holds_its_share_of_weights_gradients_and_moments(case: str, found: dict[str, list[Any]]) -> None:
    whole = found[case][0]["whole bytes"]
    for one in found[case]:
        for what, share in HELD[case].items():
            held = one["bytes"][what] / whole[what]
            assert held == pytest.approx(share, abs=0.025), (what, held)


def test_a_loss_that_is_no_number_on_one_process_takes_both_back_and_on_at_the_same_step(
    found: dict[str, list[Any]],
) -> None:
    first, second = found["gone back"]
    assert first == second
    assert first["rolled back to"] == [4]
    assert first["skipped"] == 3
    assert [index for index, *_ in first["seen"]] == list(
        range(12)
    )  # every unit once, the data that led here not again
    assert [updates for _, updates, *_ in first["seen"]] == list(range(1, 13))
    assert len({lr for _, _, lr, _ in first["seen"][9:]}) == 3  # the schedule goes on, too
