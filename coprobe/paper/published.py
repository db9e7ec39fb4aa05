"""The numbers that the paper prints in its tables, to hold ours against."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coprobe.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

TABLES = range(1, 8)

_DIRECTORY = Path(__file__).parent / "numbers"


def published(table: int) -> pd.DataFrame:
    """Every number of a table of the paper, a row each.

    Columns: dataset, network, method, xi_train and xi_eval (n of n/255), node, alpha3, noise, noise_a (its amount),
    metric, value (accuracies in percent; minutes; `co` is 1 with catastrophic overfitting, 0 without, −1 where
    training did not converge). What does not apply is missing.

    Raises:
        InputError: no such table.
    """
    return _read(table).copy()


def published_value(table: int, **keys: str | float | None) -> float | None:
    """The one number of a table that has these values in these columns; None where the paper prints none.

    A key that is None asks for rows in which that column is empty.

    Raises:
        InputError: no such table or column, or the keys leave several numbers to choose from.
    """
    frame = _read(table)
    fits = np.ones(len(frame), dtype=bool)
    for column, wanted in keys.items():
        if column not in frame:
            raise unknown("column of a published table", column, list(frame.columns))
        fits &= (frame[column].isna() if wanted is None else frame[column] == wanted).to_numpy(dtype=bool)
    if fits.sum() > 1:
        raise InputError(f"table {table} has {fits.sum()} numbers for {keys}; say more")
    return float(frame["value"].to_numpy()[fits][0]) if fits.any() else None


@cache
def _read(table: int) -> pd.DataFrame:
    import pandas as pd

    if table not in TABLES:
        raise unknown("table", str(table), map(str, TABLES))
    types = dict.fromkeys(("xi_train", "xi_eval", "alpha3", "noise_a", "value"), float)
    # pandas would take the noise "none" for a missing one, too
    return pd.read_csv(_DIRECTORY / f"table{table}.csv", dtype=types, keep_default_na=False, na_values=[""])
