"""Stored numbers of features (``KEPT_AS``); bfloat16, which numpy does not have, is stored as its bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXPONENT, _BUT_SIGN = 0x7F80, 0x7FFF  # of the bits of bfloat16


def is_finite(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers are neither NaN nor infinite."""
    finite: NDArray[np.bool_] = (
        (numbers & _EXPONENT) != _EXPONENT if numbers.dtype.kind == "u" else np.isfinite(numbers)
    )
    return finite


def is_nan(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers are NaN."""
    nan: NDArray[np.bool_] = (numbers & _BUT_SIGN) > _EXPONENT if numbers.dtype.kind == "u" else np.isnan(numbers)
    return nan
