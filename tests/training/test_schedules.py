"""Promises of the schedules: hand-computed values, and for any lengths a peak, an end, no jump."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatloom.errors import ChatloomError
from chatloom.settings import SettingsError
from chatloom.training.schedules import Schedule, cycle_of
from chatloom.training.settings import OptimizerSettings, schedule_of


def rates(total: int, **how: Any) -> list[float]:
    schedule = Schedule(total=total, **how)
    return [schedule.rate(step) for step in range(total)]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_cosine_falls_to_a_tenth() -> None:
    # span 4: progress 0, 1/4, 1/2, 3/4, 1 -> 0.1 + 0.9 * (1 + cos(pi p)) / 2
    expected = [1.0, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1]
    assert rates(5, peak=1.0, final_share=0.1, shape="cosine") == pytest.approx(expected, abs=1e-12)


def test_linear_falls_to_zero() -> None:
    found = rates(5, peak=2.0, final_share=0.0, shape="linear")
    assert found == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0], abs=1e-12)


def test_warm_up_rises_from_above_zero_to_the_peak_and_is_followed_by_the_decay() -> None:
    found = rates(8, peak=4.0, warmup=4, final_share=0.25, shape="linear")
    assert found == pytest.approx([1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 1.0], abs=1e-12)
    assert rates(3, peak=4.0, warmup=1, shape="constant") == [4.0, 4.0, 4.0]


def test_a_warm_up_again_rises_from_where_the_run_before_ended() -> None:
    found = rates(6, peak=1.0, warmup=4, warmup_from=0.2, shape="constant")
    assert found == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0], abs=1e-12)


def test_steps_beyond_the_plan_stay_at_the_end_value() -> None:
    assert Schedule(peak=1.0, total=10, final_share=0.1).rate(50) == pytest.approx(0.1)
    assert Schedule(peak=1.0, total=1, final_share=0.1).rate(0) == pytest.approx(1.0)


def test_cosine_cycles_begin_anew_at_the_peak() -> None:
    found = rates(7, peak=1.0, warmup=1, final_share=0.0, cycles=2)
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0, 1.0, 0.5, 0.0], abs=1e-12)
    longer = rates(12, peak=1.0, final_share=0.0, cycles=2, cycle_growth=3.0)  # 3 steps, then 9
    assert longer[:4] == pytest.approx([1.0, 0.5, 0.0, 1.0], abs=1e-12)
    assert longer[3:] == pytest.approx(rates(9, peak=1.0, final_share=0.0), abs=1e-12)


def test_inverse_square_root_is_that_of_the_transformers_paper() -> None:
    found = rates(4000, peak=3e-4, warmup=100, shape="inverse_sqrt")
    scale = 3e-4 * math.sqrt(100)
    expected = [scale * min(n**-0.5, n * 100**-1.5) for n in range(1, 4001)]  # equation 3, steps from 1
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "tail"),
    [
        ("linear", [1.0, 0.775, 0.55, 0.325, 0.1]),
        ("cosine", [1.0, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1]),
        ("one_minus_sqrt", [1.0, 0.55, 1 - 0.9 * math.sqrt(0.5), 1 - 0.9 * math.sqrt(0.75), 0.1]),
    ],
)
def test_warm_up_stable_decay(shape: Any, tail: list[float]) -> None:
    found = rates(10, peak=1.0, warmup=2, shape="wsd", decay=4, decay_shape=shape, final_share=0.1)
    assert found == pytest.approx([0.5, 1.0, 1.0, 1.0, 1.0, *tail], abs=1e-12)


def test_warm_up_cosine_stable_decay() -> None:
    found = rates(
        12, peak=1.0, warmup=2, shape="wcsd", stable_from=6, stable_share=0.4, decay=2, decay_shape="linear",
        final_share=0.2,
    )  # fmt: skip
    fall = [1.0, 0.4 + 0.3 * (1 + math.sqrt(0.5)), 0.7, 0.4 + 0.3 * (1 - math.sqrt(0.5)), 0.4]
    assert found == pytest.approx([0.5, 1.0, *fall, 0.4, 0.4, 0.4, 0.3, 0.2], abs=1e-12)


# --- for any lengths --------------------------------------------------------------------------------------------------


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    total = draw(st.integers(20, 400))
    warmup = draw(st.integers(0, total // 4))
    decay = draw(st.integers(2, total // 4))
    return Schedule(
        peak=draw(st.floats(1e-6, 10)),
        total=total,
        shape=draw(st.sampled_from(["cosine", "linear", "inverse_sqrt", "constant", "wsd", "wcsd"])),
        warmup=warmup,
        warmup_from=draw(st.sampled_from([0.0, 0.3])),
        final_share=draw(st.sampled_from([0.0, 0.1, 0.5])),
        cycles=draw(st.integers(1, 4)),
        cycle_growth=draw(st.sampled_from([1.0, 1.5, 2.0])),
        decay=decay,
        decay_shape=draw(st.sampled_from(["linear", "cosine", "one_minus_sqrt"])),
        stable_from=draw(st.integers(total // 3, total // 2)),
        stable_share=draw(st.sampled_from([0.5, 0.8, 1.0])),
    )


@given(schedules())
def test_the_peak_is_reached_at_the_end_of_the_warm_up_and_never_passed(schedule: Schedule) -> None:
    found = [schedule.rate(step) for step in range(schedule.total)]
    assert found[max(schedule.warmup - 1, 0)] == pytest.approx(schedule.peak, rel=1e-12)
    assert max(found) <= schedule.peak * (1 + 1e-12)
    assert all(rate > 0 for rate in found[:-1] if schedule.final_share > 0)
    assert min(found) >= 0
    assert all(a < b for a, b in pairwise(found[: schedule.warmup]))


@given(schedules())
def test_the_last_step_has_the_last_rate(schedule: Schedule) -> None:
    last = schedule.rate(schedule.total - 1)
    if schedule.shape == "constant":
        assert last == schedule.peak
    elif schedule.shape == "inverse_sqrt":
        assert last == pytest.approx(schedule.peak * math.sqrt(max(schedule.warmup, 1) / schedule.total))
    else:
        assert last == pytest.approx(schedule.final_share * schedule.peak, abs=1e-12 * schedule.peak)


@given(schedules())
def test_the_rate_never_jumps_but_where_a_cycle_begins(schedule: Schedule) -> None:
    found = [schedule.rate(step) / schedule.peak for step in range(schedule.total)]
    for step in range(max(schedule.warmup, 1), schedule.total):
        change = abs(found[step] - found[step - 1])
        if schedule.shape == "cosine":
            first, end = cycle_of(step, schedule.warmup, schedule.total, schedule.cycles, schedule.cycle_growth)
            if step == first:
                assert found[step] == pytest.approx(1.0)
                continue
            allowed = math.pi / 2 / (end - 1 - first)
        elif schedule.shape == "inverse_sqrt":
            allowed = 1 - math.sqrt(step / (step + 1))
        elif schedule.shape == "linear":
            allowed = 1 / (schedule.total - 1 - schedule.warmup)
        elif schedule.shape == "constant":
            allowed = 0.0
        elif step > schedule.total - 1 - schedule.decay:
            # a root falls fastest in its first step: by 1 / sqrt(steps)
            steep = {"linear": 1 / schedule.decay, "cosine": math.pi / 2 / schedule.decay}
            allowed = steep.get(schedule.decay_shape, 1 / math.sqrt(schedule.decay))
        else:
            allowed = math.pi / 2 / (schedule.stable_from - schedule.warmup) if schedule.shape == "wcsd" else 0.0
        assert change <= allowed + 1e-9, (step, found)


@given(st.integers(0, 50), st.integers(60, 500), st.integers(1, 6), st.sampled_from([0.5, 1.0, 2.0]))
def test_cycles_fill_the_run_without_gap(start: int, total: int, cycles: int, growth: float) -> None:
    found = [cycle_of(step, start, total, cycles, growth) for step in range(start, total)]
    assert all(first <= step < end for step, (first, end) in enumerate(found, start))
    spans = sorted(set(found))
    assert spans[0][0] == start
    assert spans[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    for a, b in pairwise(spans):
        assert b[1] - b[0] == pytest.approx(growth * (a[1] - a[0]), abs=2 + growth)


# --- from settings ----------------------------------------------------------------------------------------------------


def test_shares_become_whole_steps() -> None:
    settings = OptimizerSettings(lr=2.0, schedule="wcsd", warmup=0.1, decay=0.2, stable_from=0.5, stable_share=0.3)
    schedule = schedule_of(settings, 50)
    assert (schedule.warmup, schedule.decay, schedule.stable_from, schedule.peak) == (5, 10, 25, 2.0)
    assert schedule_of(OptimizerSettings(warmup_steps=7), 50).warmup == 7
    assert schedule_of(OptimizerSettings(schedule="wsd", warmup=0.5, decay=0.5), 7).decay == 3  # not 4 of 7, twice


def test_phases_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"warmup 0.6 and decay 0.5 are more than all steps"):
        OptimizerSettings.parse({"schedule": "wsd", "warmup": 0.6, "decay": 0.5})
    with pytest.raises(SettingsError, match=r"stable_from 0.95 leaves no room for a decay of 0.1"):
        OptimizerSettings.parse({"schedule": "wcsd", "stable_from": 0.95})
    with pytest.raises(SettingsError, match=r"warmup 0.6 is longer than stable_from 0.5"):
        OptimizerSettings.parse({"schedule": "wcsd", "warmup": 0.6})
    with pytest.raises(ChatloomError, match=r"wcsd is level from step 150 of 300; expected after the warm-up of 200"):
        schedule_of(OptimizerSettings(warmup_steps=200, schedule="wcsd"), 300)
    for total in range(1, 60):  # rounding never makes phases that fit as shares overlap as steps
        for shares in ((0.3, 0.5, 0.5), (0.5, 0.5, 0.5), (0.02, 0.9, 0.1), (0.25, 0.25, 0.75)):
            warmup, stable_from, decay = shares
            choice = OptimizerSettings(schedule="wcsd", warmup=warmup, stable_from=stable_from, decay=decay)
            assert schedule_of(choice, total).rate(total - 1) > 0
    OptimizerSettings.parse({"schedule": "cosine", "warmup": 0.6, "decay": 0.5})  # a decay that is not used
    with pytest.raises(ChatloomError, match="2000 steps of warm-up do not fit into 300 steps"):
        schedule_of(OptimizerSettings(warmup_steps=2000), 300)
    with pytest.raises(ChatloomError, match="280 steps of warm-up and 30 of decay do not fit into 300 steps"):
        schedule_of(OptimizerSettings(warmup_steps=280, schedule="wsd"), 300)
