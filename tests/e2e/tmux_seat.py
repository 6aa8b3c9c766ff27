"""A person's terminal for tests: a tmux server of its own, on a socket in the test's directory."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux (apt-get install tmux)")
PATIENCE_S = 60.0


class Seat:
    """One window. `type` sends text or, by tmux's names, keys; `sees` waits for what the screen shows."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self._environ = {**environ, "TERM": "xterm-256color", "SHELL": "/bin/bash"}
        self._socket = str(home / "tmux")

    def open(self, columns: int, rows: int) -> None:
        self.tmux(
            "-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "bash --norc --noprofile"
        )
        self.tmux("set-option", "-g", "history-limit", "5000")
        self.sees(r"[#$]")
        self.run("PS1='seat$ '")
        self.sees(r"^seat\$ *$")

    def tmux(self, *words: str) -> str:
        command = ["tmux", "-S", self._socket, *words]
        return subprocess.run(command, env=self._environ, capture_output=True, text=True, check=True, timeout=30).stdout

    def type(self, text: str, *keys: str) -> None:
        """`text` as it is, then `keys` such as Enter and C-c."""
        if text:
            self.tmux("send-keys", "-l", text)
        if keys:
            self.tmux("send-keys", *keys)

    def run(self, text: str) -> None:
        self.type(text, "Enter")

    def screen(self) -> str:
        """All lines since the window was opened, trailing blanks left out."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-").rstrip()

    def sees(self, pattern: str, patience_s: float = PATIENCE_S) -> re.Match[str]:
        """The last match of `pattern` on the screen, as soon as there is one."""
        deadline_s = time.monotonic() + patience_s
        while True:
            screen = self.screen()
            found = list(re.finditer(pattern, screen, re.MULTILINE))
            if found:
                return found[-1]
            assert time.monotonic() < deadline_s, f"not within {patience_s:g} s: {pattern}\n{screen}"
            time.sleep(0.05)

    def close(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], capture_output=True, check=False, timeout=30)


@contextmanager
def seat(home: Path, environ: Mapping[str, str], columns: int = 100, rows: int = 30) -> Iterator[Seat]:
    """A terminal of that size with a shell in it."""
    found = Seat(home, environ)
    try:
        found.open(columns, rows)
        yield found
    finally:
        found.close()
