"""Promises of the sample: bounded in bytes, fair to languages and sources, decided by ids and not by order."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from chatloom.tokens.sampling import Sampled, cut_to, plan_sample, share_out


def corpus(sizes: dict[tuple[str, str], int], length: int = 50) -> list[Sampled]:
    return [
        Sampled(f"{source}-{i}", language, source, ("x" if language == "en" else "文") * length)
        for (language, source), n in sizes.items()
        for i in range(n)
    ]


SIZES = {("en", "books"): 900, ("en", "web"): 100, ("zh", "news"): 40}


def taken(items: list[Sampled], limit: int, **options: float) -> list[Sampled]:
    return list(plan_sample(items, limit, **options).take(items))  # type: ignore[arg-type]


def size(items: list[Sampled]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for item in items:
        found[item.language, item.source] += len(item.text.encode("utf-8"))
    return found


@pytest.mark.parametrize("limit", [1, 100, 999, 5000, 20_000, 51_000, 56_000, 10**9])
@pytest.mark.parametrize("smoothing", [0.0, 0.7, 1.0])
def test_the_bound_holds_and_is_used_up(limit: int, smoothing: float) -> None:
    items = corpus(SIZES)
    plan = plan_sample(items, limit, smoothing=smoothing)
    found = size(list(plan.take(items)))
    total = sum(found.values())
    assert total <= limit
    assert total >= min(limit, sum(size(items).values())) - 3 * len(SIZES)  # half a Han character at each edge
    assert all(found[stratum] <= plan.quota[stratum] for stratum in plan.quota)
    assert plan.complete == (limit >= sum(size(items).values()))


def test_what_fits_is_taken_whole_and_in_order() -> None:
    items = corpus(SIZES)
    assert taken(items, 10**9) == items


def test_languages_and_sources_get_fair_shares() -> None:
    items = corpus(SIZES)  # 45,000 + 5,000 bytes of English, 6,000 of Chinese
    equal, natural = size(taken(items, 8000, smoothing=0.0)), size(taken(items, 8000, smoothing=1.0))
    assert equal["zh", "news"] == pytest.approx(4000, abs=3)
    assert equal["en", "books"] == equal["en", "web"] == 2000
    assert natural["zh", "news"] == pytest.approx(8000 * 6 / 56, abs=3)
    assert natural["en", "books"] == pytest.approx(9 * natural["en", "web"], abs=12)
    between = size(taken(items, 8000, smoothing=0.7))["zh", "news"]
    assert natural["zh", "news"] < between < equal["zh", "news"]
    assert size(taken(items, 30_000, smoothing=0.0))["zh", "news"] == 6000  # all there is; others get the rest


def test_the_order_of_texts_decides_only_at_the_edge() -> None:
    items = corpus(SIZES)
    shuffled = random.Random(1).sample(items, len(items))
    one, other = ({item.id for item in taken(order, 8000)} for order in (items, shuffled))
    assert len(one ^ other) <= 2 * len(SIZES)
    smaller = {item.id for item in taken(items, 4000)}
    assert len(smaller - one) <= len(SIZES)
    assert {item.id for item in taken(items, 8000, seed=1)} != one


def test_a_text_larger_than_its_share_is_cut_between_characters() -> None:
    items = [Sampled("a", "zh", "s", "文字" * 1000), Sampled("b", "en", "s", "x" * 6000)]
    found = taken(items, 200, smoothing=1.0)
    assert {item.id: len(item.text.encode()) for item in found} == {"a": 99, "b": 100}
    assert cut_to("a文", 3) == "a"
    assert cut_to("a文", 4) == "a文"


def test_shares_add_up_and_nobody_gets_more_than_there_is() -> None:
    assert share_out({"a": 10, "b": 1000, "c": 0}, 100, 0.0) == {"a": 10, "b": 90, "c": 0}
    assert share_out({"a": 10, "b": 20}, 1000, 0.5) == {"a": 10, "b": 20}
    assert share_out({"a": 300, "b": 100}, 100, 1.0) == {"a": 75, "b": 25}
    assert share_out({}, 100, 1.0) == {}
    assert plan_sample([], 100).quota == {}
