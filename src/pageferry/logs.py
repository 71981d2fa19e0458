# SPDX-License-Identifier: Apache-2.0
"""What is logged, in the standard ``logging`` module, and how the command writes it.

The library logs below the logger ``pageferry`` and sets up nothing: without a handler of the
program nothing is written. What a record is about is in its attribute ``fields``, a dict. The
command sets up a handler by ``--log-json`` and ``--log-level``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

#: What ``--log-level`` takes.
LEVELS = ("debug", "info", "warning", "error")

_root = logging.getLogger("pageferry")
_root.addHandler(logging.NullHandler())  # else Python writes warnings to stderr by itself


def event(logger: logging.Logger, level: int, message: str, **fields: Any) -> None:
    """Log ``message`` with ``fields``, if anybody wants it."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message, extra={"fields": fields}, stacklevel=2)


class JsonFormatter(logging.Formatter):
    """One line of JSON for a record: time (UTC), level, logger, message, process, its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            value |= {name: each for name, each in fields.items() if name not in value}
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)


class CommandHandler(logging.StreamHandler[Any]):
    """Writes the command's log to stderr: JSON, or lines for people."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__(sys.stderr)
        self.as_json = as_json
        text = logging.Formatter("pageferry: %(levelname)s: %(message)s")
        self.setFormatter(JsonFormatter() if as_json else text)

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the move alone when nobody reads its log any more."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-json`` and ``--log-level`` to ``parser`` and all verbs below it.

    They may stand before the verb or after it; where they are not given, nothing is set.
    """
    for each in _parsers(parser):
        group = each.add_argument_group("log")
        group.add_argument(
            "--log-json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="on standard error only lines of JSON: what is done, what goes wrong",
        )
        group.add_argument(
            "--log-level",
            choices=LEVELS,
            default=argparse.SUPPRESS,
            help="what is logged at least (with --log-json: info; else nothing is)",
        )


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _parsers(below)


def begin(args: argparse.Namespace) -> CommandHandler | None:
    """Set up what the options ask for; None for nothing. To be given to ``end``."""
    as_json: bool = getattr(args, "log_json", False)
    level: str | None = getattr(args, "log_level", None)
    if not as_json and level is None:
        return None
    handler = CommandHandler(as_json=as_json)
    _root.addHandler(handler)
    _root.setLevel((level or "info").upper())
    _root.propagate = False
    return handler


def end(handler: CommandHandler | None) -> None:
    """Take away what ``begin`` set up."""
    if handler is not None:
        _root.removeHandler(handler)
        _root.setLevel(logging.NOTSET)
        _root.propagate = True


def json_on_stderr() -> bool:
    """Say whether standard error has lines of JSON, so that nothing else may go there."""
    return any(isinstance(each, CommandHandler) and each.as_json for each in _root.handlers)


def on_stderr() -> bool:
    """Say whether the log goes to standard error."""
    return any(isinstance(each, CommandHandler) for each in _root.handlers)
