"""Promises of the meter: what a step's rates are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatloom.model.config import TransformerConfig
from chatloom.tokens.packing import Segment, pack
from chatloom.training.meter import Meter

CONFIG = TransformerConfig(64, 32, 2, 2, 2, 16, 48, 16)


def test_mfu_counts_the_attention_that_packed_documents_need() -> None:
    meter = Meter(torch.device("cpu"), "fp32", CONFIG)
    meter.peak = 1e9
    whole = pack([Segment(np.arange(16), np.ones(16))], 16, 0)
    parts = pack([Segment(np.arange(4), np.ones(4)) for _ in range(4)], 16, 0)
    assert (whole.n_keys, parts.n_keys) == (16 * 17 // 2, 4 * (4 * 5 // 2))
    found = [meter.rates(batch.n_tokens, batch.n_keys, 2.0, 0.5)["mfu"] for batch in (whole, parts)]
    assert found[0] == pytest.approx(CONFIG.flops_per_token(16) * 16 / 2e9)
    assert found[1] == pytest.approx(CONFIG.flops_per_token(4) * 16 / 2e9)


def test_waiting_is_a_share_of_the_step_and_memory_is_that_of_this_process() -> None:
    rates = Meter(torch.device("cpu"), "fp32", CONFIG).rates(16, 136, 2.0, 0.5)
    assert rates["data_wait"] == 0.25
    assert 5e7 < rates["memory"] < 1e12  # bytes, not kilobytes: torch alone takes 200 MB
