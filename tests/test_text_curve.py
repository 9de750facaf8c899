"""Promises of curves in plain text: heights in eighths, no peak lost, nothing above 0 invisible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatloom.text_curve import EIGHTHS, text_curve


def test_by_hand() -> None:
    assert text_curve([0, 1, 2, 3, 4, 5, 6, 7, 8], height=1) == " ▁▂▃▄▅▆▇█"
    assert text_curve([0.5, 1.0, 0.75, 0.25, 0.0], height=2, total=1234) == "\n".join(
        ["1 │ █▄", "0 │███▄", "   step 1 1,234"]
    )
    wide = text_curve([1.0] * 100, width=20, height=2).splitlines()
    assert wide == ["1 │" + "█" * 20, "0 │" + "█" * 20, "   step 1" + "100".rjust(14)]


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=300).filter(any), st.integers(1, 80), st.integers(1, 6))
def test_heights_are_those_of_the_values(values: list[float], width: int, height: int) -> None:
    lines = text_curve(values, width=width, height=height).splitlines()
    rows = lines if height == 1 else [line.partition("│")[2] for line in lines[:-1]]
    n = min(width, len(values))
    assert len(rows) == height
    assert max(map(len, rows)) <= n
    found = [sum(EIGHTHS.index(row[i]) if i < len(row) else 0 for row in rows) for i in range(n)]
    assert max(found) == 8 * height
    for i, level in enumerate(found):
        largest = max(values[len(values) * i // n : len(values) * (i + 1) // n])
        assert abs(level - 8 * height * largest / max(values)) <= (0.5 if level > 1 else 1)
        assert (level > 0) == (largest > 0)
    assert height == 1 or len({line.index("│") for line in lines[:-1]}) == 1
