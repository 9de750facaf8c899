"""Promises of the reading order: each epoch a permutation, a pure function of seed and position."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.errors import ChatloomError
from chatloom.tokens.order import Order


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40), seed=st.integers(-5, 2**70), epoch=st.integers(0, 9))
def test_every_epoch_reads_every_item_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(Order(size, seed).items(epoch * size, size)) == list(range(size))


def test_an_item_depends_on_seed_and_position_only() -> None:
    straight = Order(30, 5).items(0, 90)
    jumping = Order(30, 5)
    assert [jumping.item(p) for p in (70, 3, 89, 31)] == [straight[p] for p in (70, 3, 89, 31)]
    assert straight[:30] != straight[30:60]
    assert straight[:30] != Order(30, 6).items(0, 30)


def test_the_order_is_the_recorded_one() -> None:
    # A run must resume under another version of numpy with the same order; this notices when that would break.
    assert Order(8, 0).items(0, 16) == RECORDED


def test_streams_of_one_seed_have_orders_of_their_own() -> None:
    orders = [Order(30, 5, stream=n).items(0, 60) for n in range(3)]
    assert orders[0] == Order(30, 5).items(0, 60)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert all(sorted(order[30:]) == list(range(30)) for order in orders)
    assert Order(8, 0, stream=1).items(0, 8) == RECORDED_STREAM


@pytest.mark.filterwarnings("error")
def test_a_negative_seed_is_a_seed_like_any_other() -> None:
    assert Order(20, -3).items(0, 20) == Order(20, 2**64 - 3).items(0, 20)
    assert Order(20, -3).items(0, 20) != Order(20, -4).items(0, 20)


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(ChatloomError, match="nothing to read"):
        Order(0, 0)


RECORDED = [5, 0, 6, 1, 7, 2, 4, 3, 2, 0, 4, 1, 7, 5, 3, 6]
RECORDED_STREAM = [3, 2, 1, 7, 4, 0, 5, 6]
