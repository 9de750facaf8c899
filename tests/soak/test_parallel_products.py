"""Four processes on two axes at once, and eight on three: they end where one process ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel_processes import results

pytestmark = pytest.mark.soak

PAIRS = (
    "replicate x tensor", "zero1 x tensor", "zero3 x tensor", "replicate x pipeline", "zero1 x pipeline",
    "tensor x pipeline",
)  # fmt: skip


@pytest.mark.parametrize(("n", "cases"), [(4, PAIRS), (8, ("zero1 x tensor x pipeline",))])
def test_products_of_axes_end_where_one_process_ends(n: int, cases: tuple[str, ...], tmp_path: Path) -> None:
    found = results(tmp_path, n, cases)
    for case in cases:
        for name in ("loss", "norm", "gradient", "weights", "moments"):
            assert found[case][0][name] < 1e-5, (case, name)
        assert all(one["filled"] and one["state filled"] for one in found[case]), case
        assert len({tuple(one["losses"]) for one in found[case]}) == 1, case
