"""Minimisation of a smooth convex function of many variables from its value and gradient: L-BFGS.

Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization", algorithm 2.1, with a step that is
halved until the value has fallen enough (Armijo). No randomness: the same function gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
MEMORY = 8
ENOUGH = 1e-4
SMALLEST_STEP = 1e-12


def minimise(
    function: Callable[[F64], tuple[float, F64]],
    start: F64,
    *,
    max_steps: int = 200,
    tolerance: float = 1e-6,
    advance: Callable[[float], None] = lambda _: None,
) -> tuple[F64, float]:
    """The minimum's place and value; stops when a step gains less than `tolerance` of the value.

    `advance` is told the value after every step.
    """
    place = start.copy()
    value, gradient = function(place)
    pairs: deque[tuple[F64, F64, float]] = deque(maxlen=MEMORY)
    for _ in range(max_steps):
        direction = -_times_inverse_hessian(gradient, pairs)
        slope = float(direction @ gradient)
        if slope >= 0:
            break
        step = 1.0 if pairs else min(1.0, 1.0 / float(np.sqrt(gradient @ gradient)))
        while True:
            new_value, new_gradient = function(place + step * direction)
            if new_value <= value + ENOUGH * step * slope:
                break
            step /= 2
            if step < SMALLEST_STEP:
                return place, value
        moved, turned = step * direction, new_gradient - gradient
        gained = value - new_value
        place, value, gradient = place + moved, new_value, new_gradient
        curvature = float(moved @ turned)
        if curvature > 1e-12 * float(turned @ turned):
            pairs.append((moved, turned, curvature))
        advance(value)
        if gained <= tolerance * max(abs(value), 1e-12):
            break
    return place, value


def _times_inverse_hessian(gradient: F64, pairs: deque[tuple[F64, F64, float]]) -> F64:
    """The two-loop recursion."""
    result = gradient.copy()
    shares = []
    for moved, turned, curvature in reversed(pairs):
        share = float(moved @ result) / curvature
        shares.append(share)
        result -= share * turned
    if pairs:
        moved, turned, curvature = pairs[-1]
        result *= curvature / float(turned @ turned)
    for (moved, turned, curvature), share in zip(pairs, reversed(shares)):
        result += (share - float(turned @ result) / curvature) * moved
    return result
