"""JSON files of the report, read with a bound; errors are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ifap.errors import ResultsError
from ifap.files import read_bounded
from ifap.study.report.csv_files import MOST_BYTES


def read_json(file: Path, shown: Path) -> Any:
    """Return the content of a JSON file, which errors call `shown`; None where there is none."""
    try:
        return json.loads(read_bounded(file, MOST_BYTES).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ResultsError(f"malformed {shown}: {error}") from None
