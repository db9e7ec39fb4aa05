"""Tables that are made once and found again for the same inputs and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprobe.errors import InputError
from coprobe.files import write_table

if TYPE_CHECKING:
    import pandas as pd


def cached(
    directory: Path | None, kind: str, identity: Mapping[str, Any], make: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """The table that is kept in `directory` under `kind` and a digest of `identity`, else what `make` returns.

    Args:
        directory: where tables are looked up and kept; None keeps nothing.
        kind: in a word, the beginning of the file name.
        identity: everything that the table depends on, as plain values.
        make: called where the table is not there; its `attrs` are kept as well.

    Raises:
        InputError: the file is there but can't be read.
    """
    import pandas as pd

    if directory is None:
        return make()
    key = json.dumps(identity, sort_keys=True)
    path = directory / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.parquet"
    if path.exists():
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            raise InputError(f"{path}: can't be read; delete it, and it is made again") from error
    frame = make()
    write_table(frame, path)
    return frame
