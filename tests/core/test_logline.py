"""The lines of a daemon's log: what programs read from them, what people read, and that a log harms nobody."""

from __future__ import annotations

import errno
import io
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpushare.logline import Log


def test_an_event_is_a_line_of_json_with_its_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    Log().warning("node silent", node="n1", lease="LOST", pid=7, path=Path("/x"), text="two\nlines \ud800")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    said = json.loads(line)
    at = datetime.fromisoformat(said.pop("timestamp"))
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert said == {
        "event": "node silent",
        "level": "warning",
        "node": "n1",
        "lease": "LOST",
        "pid": 7,
        "path": "PosixPath('/x')",
        "text": "two\nlines \ud800",
    }


def test_an_exception_is_told_with_where_it_arose() -> None:
    lines = io.StringIO()
    log = Log(lines)
    try:
        raise OSError("no room")
    except OSError as err:
        log.exception("deciding failed", command="SubmitJobs")
        kept = err
    log.error("not delivered", exc_info=kept)
    for said in map(json.loads, lines.getvalue().splitlines()):
        assert said["level"] == "error"
        assert said["exception"].startswith("Traceback")
        assert "test_logline.py" in said["exception"]
        assert said["exception"].endswith("OSError: no room")


def test_on_a_terminal_it_reads_as_text() -> None:
    lines = io.StringIO()
    Log(lines, plain=True).info("serving", address="127.0.0.1:7000", why="as it was", tls=True, none="")
    at, _, rest = lines.getvalue().partition(" ")
    datetime.fromisoformat(at)
    assert rest == "[info] serving address=127.0.0.1:7000 why='as it was' tls=True none=''\n"


class FullDisk(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "no room")


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    Log(FullDisk()).info("into a full disk")
    closed = io.StringIO()
    closed.close()
    Log(closed).info("after its end")


def test_it_writes_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    log.info("here")
    assert json.loads(other.getvalue())["event"] == "here"
