"""The parent's own log: one JSON object a line, metrics in CloudWatch's embedded metric format where there are any.

Specification: "Embedded metric format" in the Amazon CloudWatch User Guide. A document holds `_aws.Timestamp`
(milliseconds), `_aws.CloudWatchMetrics` with at most 100 metrics and 30 dimensions a set, and every value that those
name at its root.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

NAMESPACE = "Cloister/Parent"
Unit = Literal["Count", "Seconds", "Bytes"]


class Log:
    """Writes to standard error, standard output or a file that is rotated by size; a full disk stops no stream."""

    def __init__(self, name: str, where: str, *, size: int, files: int) -> None:
        self._name = name
        self._handler: logging.Handler
        if where in ("stderr", "stdout"):
            self._handler = logging.StreamHandler(sys.stderr if where == "stderr" else sys.stdout)
        else:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
            self._handler = RotatingFileHandler(where, maxBytes=size, backupCount=files, encoding="ascii")

    def write(
        self,
        event: str,
        words: Mapping[str, str] | None = None,
        metrics: Mapping[str, tuple[float, Unit]] | None = None,
    ) -> None:
        """One line; the words are dimensions of the metrics, besides the enclave's name."""
        line = document(event, self._name, words or {}, metrics or {})
        self._handler.emit(logging.makeLogRecord({"msg": json.dumps(line, separators=(",", ":"))}))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


def document(
    event: str, name: str, words: Mapping[str, str], metrics: Mapping[str, tuple[float, Unit]]
) -> dict[str, object]:
    """The object of one line."""
    now = int(time.time() * 1000)
    line: dict[str, object] = {}
    if metrics:
        sets = [["name"], ["name", *words]] if words else [["name"]]
        definitions = [{"Name": each, "Unit": unit} for each, (_, unit) in metrics.items()]
        directive = {"Namespace": NAMESPACE, "Dimensions": sets, "Metrics": definitions}
        line["_aws"] = {"Timestamp": now, "CloudWatchMetrics": [directive]}
    line |= {"time": now, "name": name, "event": event, **words}
    return line | {each: value for each, (value, _) in metrics.items()}
