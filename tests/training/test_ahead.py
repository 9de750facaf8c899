"""Promises of reading ahead."""

from __future__ import annotations

import threading

import pytest

from chatloom.training.ahead import Ahead


def test_values_come_in_order_and_the_next_is_made_meanwhile() -> None:
    begun = threading.Event()

    def make(index: int) -> int:
        if index == 1:
            begun.set()
        return index * index

    with Ahead(make, 5) as ahead:
        assert ahead.take(0)[0] == 0
        assert begun.wait(10)  # nobody has asked for it yet
        assert [ahead.take(i)[0] for i in range(1, 5)] == [1, 4, 9, 16]


def test_a_run_may_begin_anywhere_and_nothing_beyond_its_end_is_made() -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index

    with Ahead(make, 9) as ahead:
        assert [ahead.take(i)[0] for i in (7, 8)] == [7, 8]
    assert made == [7, 8]


def test_what_fails_is_raised_where_it_is_taken() -> None:
    def make(index: int) -> int:
        if index == 1:
            raise ValueError("torn")
        return index

    with Ahead(make, 3) as ahead:
        ahead.take(0)
        with pytest.raises(ValueError, match="torn"):
            ahead.take(1)
