"""Tables as JSON, for programs."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def encode_json_rows(table: pd.DataFrame) -> bytes:
    """Encode a table as JSON: a list with one object per row, whose keys are the names of the columns.

    Numbers keep all their digits, unlike in `pandas.DataFrame.to_json`. Missing and infinite values are null,
    as JSON has no notation for them.

    Example:
        >>> print(encode_json_rows(pd.DataFrame({"optim.l1": [0.1, None], "seed": [0, 1]})).decode(), end="")
        [
        {"optim.l1": 0.1, "seed": 0},
        {"optim.l1": null, "seed": 1}
        ]
    """
    rows = [json.dumps(_to_json(row), allow_nan=False) for row in table.to_dict("records")]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode()


def _to_json(value: Any) -> Any:
    """Return a value that `json.dumps` takes: no NumPy numbers, and None for what JSON cannot write."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_to_json(item) for item in value]
    if isinstance(value, np.generic):
        return _to_json(value.item())
    if value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)
