"""Best of n: sample n answers, keep the one the reward model likes most. Its KL is known, its curve needs one pool."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n policy || sampled policy) = log n - (n - 1) / n, in nats an answer.

    Stiennon et al. 2020, appendix G.3; exact when no two answers tie, otherwise an upper bound (Beirami et al. 2024).
    """
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1")
    return math.log(n) - (n - 1) / n


def best_of_n_weights(pool: int, n: int) -> Tensor:
    """Probability that the i-th worst of `pool` answers is the best of n drawn from them without repeats: fp64 [pool].

        weight_i = C(i - 1, n - 1) / C(pool, n),   i = 1 (worst) .. pool (best)

    Nakano et al. 2021 (WebGPT), appendix I; Gao et al. 2022. Raises ValueError unless 1 <= n <= pool.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"n is {n} for a pool of {pool} answers; expected 1 <= n <= pool")
    total = math.comb(pool, n)
    return torch.tensor([math.comb(i, n - 1) / total for i in range(pool)], dtype=torch.float64)


def best_of_n_curve(proxy: Tensor, gold: Tensor, ns: Sequence[int]) -> Tensor:
    """Expected gold value of the answer that the proxy picks from n, for each n and prompt: fp64 [len(ns), prompts].

    proxy, gold: [prompts, pool], one pool of samples a prompt. Unbiased, and uses every sample for every n. Among
    answers with equal proxy the pick is even. Give gold = proxy for the proxy's own curve. Raises ValueError on shapes.
    """
    if proxy.shape != gold.shape or proxy.ndim != 2:
        raise ValueError(f"proxy {list(proxy.shape)}, gold {list(gold.shape)}: expected [prompts, pool] both")
    order = proxy.argsort(dim=-1, stable=True)
    proxy = proxy.gather(-1, order)
    gold = _mean_over_ties(proxy, gold.gather(-1, order).to(torch.float64))
    weights = torch.stack([best_of_n_weights(proxy.shape[1], n) for n in ns]).to(gold.device)
    return weights @ gold.t()


def _mean_over_ties(sorted_proxy: Tensor, gold: Tensor) -> Tensor:
    """Replace gold by its mean over each run of equal proxy values, row by row: [prompts, pool] both."""
    new = torch.ones_like(sorted_proxy, dtype=torch.bool)
    new[:, 1:] = sorted_proxy[:, 1:] != sorted_proxy[:, :-1]
    run = new.flatten().cumsum(0) - 1
    sums = gold.new_zeros(int(run[-1]) + 1).index_add(0, run, gold.flatten())
    counts = torch.zeros_like(sums).index_add(0, run, torch.ones_like(gold).flatten())
    return (sums / counts)[run].reshape(gold.shape)
