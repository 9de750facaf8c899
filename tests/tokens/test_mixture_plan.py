"""Promises of a mixture's plan: hand-computed weights and passes, the published tables' form, refusals that help."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.settings import SettingsError
from chatloom.tokens.mixture_plan import MixtureError, MixtureSettings, Size, check_names, plan_mixture, short

SIZES = {"web": Size(1000, 100_000, 100, 200_000), "wiki": Size(50, 5_000, 10, 10_000), "talk": Size(9, 900, 3, 1800)}


def parse(stages: list[dict[str, Any]], **most: float) -> MixtureSettings:
    sources = [{"name": name, "max_epochs": most.get(name, 4)} for name in SIZES]
    for source in sources[:-1]:
        source["where"] = f'source == "{source["name"]}"'
    return MixtureSettings.parse({"sources": sources, "stages": stages})


def test_weights_and_epochs_become_rows_as_computed_by_hand() -> None:
    early = {"name": "early", "tokens": 40_000, "weights": {"web": 9, "wiki": 1}}
    late = {"name": "annealing", "tokens": 11_800, "weights": {"web": 0.4, "wiki": 0.6}, "epochs": {"talk": 2}}
    plan = plan_mixture(parse([early, late]), SIZES)
    # early: 36,000 tokens of web are 36 of its 100 rows, 4,000 of wiki 8 of its 10.
    assert plan.stages[0].rows == (36, 8, 0)
    # annealing: 2 passes over talk are 6 rows and 1,800 tokens, which leaves 10,000: 4 rows of web, 12 of wiki.
    assert plan.stages[1].rows == (4, 12, 6)
    assert plan.stages[1].tokens == pytest.approx((4_000, 6_000, 1_800))
    assert plan.n_tokens == pytest.approx(51_800)


def test_epochs_alone_need_no_number_of_tokens() -> None:
    plan = plan_mixture(parse([{"name": "all", "epochs": {"web": 1, "wiki": 2.5}}]), SIZES)
    assert plan.stages[0].rows == (100, 25, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12), st.integers(1, 500))
def test_rounding_to_rows_never_adds_up_over_stages(shares: list[float], rows: int) -> None:
    whole = sum(shares)
    stages = [
        {"name": f"s{i}", "epochs": {"web": share / whole, "wiki": 1 / len(shares)}} for i, share in enumerate(shares)
    ]
    sizes = {**SIZES, "web": Size(9, 12_345, rows, 9), "wiki": Size(9, 999_999, 100_000, 9)}
    plan = plan_mixture(parse(stages), sizes)
    assert sum(stage.rows[0] for stage in plan.stages) == rows
    assert sum(stage.rows[1] for stage in plan.stages) == 100_000


def test_the_table_has_the_columns_of_the_published_ones() -> None:
    early = {"name": "early", "tokens": 40_000, "weights": {"web": 9, "wiki": 1}}
    late = {"name": "annealing", "epochs": {"talk": 2, "wiki": 1}}
    lines = plan_mixture(parse([early, late]), SIZES).table().splitlines()
    assert lines[0].split() == ["stage", "`early`", "weight", "epochs", "tokens", "of", "documents", "disk"]
    assert lines[1].split() == ["web", "90.0%", "0.36", "36", "k", "100", "k", "1,000", "200", "kB"]
    assert lines[4].split() == ["total", "100.0%", "40", "k", "106", "k", "1,059", "212", "kB"]
    assert lines[6].split()[:2] == ["stage", "`annealing`"]
    assert lines[12].split()[:2] == ["all", "stages"]
    assert lines[14].split()[:4] == ["wiki", "19.2%", "1.80", "9"]
    assert len({len(line) for line in lines if line}) == 1


def test_numbers_are_shown_in_three_digits() -> None:
    shown = [short(n) for n in (0, 7, 999, 1000, 12_345, 99_960, 1.4e12, 3e15, 999_600)]
    assert shown == ["0", "7", "999", "1 k", "12.3 k", "100 k", "1.4 T", "3000 T", "1 M"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [{"name": "a", "tokens": 30_000, "weights": {"wiki": 1}}],
            "`wiki`: stages ask for 30 k tokens, 6.00 passes over its 5 k; max_epochs is 4, which gives 20 k.*to 6",
        ),
        (
            [{"name": "a", "epochs": {"wiki": 3}}, {"name": "b", "epochs": {"wiki": 1.5}}],
            "4.50 passes over its 5 k; max_epochs is 4",
        ),
        (
            [{"name": "a", "tokens": 1000, "weights": {"web": 1}, "epochs": {"wiki": 1}}],
            "`epochs` come to 5 k tokens, its `tokens` are 1 k",
        ),
        ([{"name": "a", "tokens": 100, "weights": {"web": 1}}], "asks for less than one row"),
        ([{"name": "a", "weights": {"web": 1}}], "has weights but no `tokens`"),
        ([{"name": "a", "tokens": 100}], "no weight to share them out by"),
        ([{"name": "a"}], "reads nothing"),
        ([{"name": "a", "epochs": {"web": 0}}], "reads nothing"),
        ([{"name": "a", "epochs": {"wbe": 1}}], "no source `wbe`; did you mean `web`"),
        ([{"name": "a", "epochs": {"web": -1, "wiki": 1}}], "`web: -1.0`; expected a number from 0 up"),
        ([{"name": "a", "epochs": {"web": float("nan"), "wiki": 1}}], "expected a number from 0 up"),
        ([{"name": "a", "tokens": 9, "weights": {"web": 1}, "epochs": {"web": 1}}], "give one of them"),
        ([{"name": "a", "epochs": {"web": 1}}, {"name": "a", "epochs": {"web": 1}}], "`a` is there twice"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_way_out(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(MixtureError, match=f"(?s){message}"):
        plan_mixture(parse(stages), SIZES)


def test_every_reason_is_told_at_once() -> None:
    stages = [{"name": "a", "epochs": {"wiki": 5, "talk": 9}}, {"name": "b", "tokens": 9, "weights": {"web": 1}}]
    with pytest.raises(MixtureError) as caught:
        plan_mixture(parse(stages), SIZES)
    assert len(str(caught.value).splitlines()) == 3


def test_a_source_without_documents_is_refused_only_where_it_is_read() -> None:
    sizes = {**SIZES, "wiki": Size(0, 0, 0, 0), "talk": Size(0, 0, 0, 0)}
    plan_mixture(parse([{"name": "a", "epochs": {"web": 1}}]), sizes)
    with pytest.raises(MixtureError, match='`wiki`: no document fits `source == "wiki"`, but stages ask for 500 tok'):
        plan_mixture(parse([{"name": "a", "tokens": 1000, "weights": {"web": 1, "wiki": 1}}]), sizes)
    with pytest.raises(MixtureError, match="`talk`: no document is left for it"):
        plan_mixture(parse([{"name": "a", "tokens": 1000, "weights": {"talk": 1}}]), sizes)


def test_sources_and_stages_come_together_and_what_takes_all_comes_last() -> None:
    with pytest.raises(MixtureError, match="both `sources` and `stages`"):
        check_names(MixtureSettings.parse({"sources": [{"name": "a"}]}))
    stages = [{"name": "s", "epochs": {"a": 1}}]
    sources = [{"name": "a"}, {"name": "b", "where": "True"}]
    with pytest.raises(MixtureError, match=r"`a` has no `where` and takes every document.*`b`; put it last"):
        check_names(MixtureSettings.parse({"sources": sources, "stages": stages}))
    with pytest.raises(SettingsError, match="there is no such setting; did you mean `where`"):
        MixtureSettings.parse({"sources": [{"name": "a", "wher": "x"}]})
    check_names(MixtureSettings())
