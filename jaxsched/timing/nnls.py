"""Non-negative least squares in NumPy: the active-set method of Lawson and Hanson (1974)."""

from __future__ import annotations

import numpy as np


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """``argmin_x |matrix @ x - target|`` subject to ``x >= 0``, float64 ``[num_columns]``.

    Columns are scaled to unit length first, and the rows compressed by QR, so the cost hardly grows with their number.
    Deterministic. An all-zero column gets coefficient 0.
    """
    length = np.linalg.norm(matrix, axis=0)
    used = np.flatnonzero(length > 0)
    q, a = np.linalg.qr(matrix[:, used] / length[used])
    b = q.T @ target
    num = len(used)
    x, free = np.zeros(num), np.zeros(num, bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(a.T @ b).max(initial=0.0)))
    for _ in range(10 * (num + 1)):
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        if num == 0 or gradient.max() <= tolerance:
            break
        free[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros(num)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            blocking = free & (trial <= 0)
            if not blocking.any():
                break
            # Walk from x towards the unconstrained solution until the first coefficient reaches zero.
            step = np.min(x[blocking] / np.maximum(x[blocking] - trial[blocking], 1e-300))
            x = np.maximum(x + step * (trial - x), 0.0)
            free &= x > 1e-14
        x = trial
    result = np.zeros(matrix.shape[1])
    result[used] = x / length[used]
    return result
