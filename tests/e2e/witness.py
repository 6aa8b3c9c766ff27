"""What jobs themselves saw: each writes lines to one file, which is the judge of what the scheduler and agents claim.

A job begins its shell text with `MARK` and calls `mark WORD`. A line is one O_APPEND write: the word, the attempt, its
cards, its share, the boot-time clock, the pid, the node. `Witness.check` holds for every run, whatever was killed in
it: no attempt starts twice, attempts of a task never overlap, no card carries more than itself.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import NamedTuple

TENANT = "team"
WHOLE_MILLI = 1000

MARK = (
    "mark() { read -r up _ < /proc/uptime; "
    'echo "$1 $GPUSHARE_JOB_ID.$GPUSHARE_TASK_INDEX.$GPUSHARE_ATTEMPT ${CUDA_VISIBLE_DEVICES:--} '
    '$GPUSHARE_GPU_MILLI $up $$ $GPUSHARE_NODE" >> "$WITNESS"; }; '
)


def work(seconds: float, ending: str = "exit 0") -> str:
    """A job that takes a while and ends as `ending` says."""
    return f"{MARK} mark start; sleep {seconds:g}; mark end; {ending}"


def hold(gate: Path, ending: str = "exit 0") -> str:
    """A job that goes on until the file `gate` is there, and says every now and then that it lives."""
    return f"{MARK} mark start; while [ ! -e '{gate}' ]; do sleep 0.1; mark beat; done; mark end; {ending}"


class Life(NamedTuple):
    """One process's life as an attempt: `last_s` is when it was last known to live, on the boot-time clock."""

    attempt_id: str
    gpus: tuple[str, ...]
    gpu_milli: int
    pid: int
    node: str
    start_s: float
    last_s: float
    ended: bool

    @property
    def task(self) -> str:
        return self.attempt_id.rpartition(".")[0]

    @property
    def alive(self) -> bool:
        """Whether its main process is there and no zombie."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat[stat.rfind(")") + 2] not in "ZX"


class Witness:
    """The file and what can be read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(mode=0o666)
        path.chmod(0o666)

    def starts(self) -> list[str]:
        """The attempt of every start, in the order of the starts."""
        return [words[1] for words in self._lines() if words[0] == "start"]

    def lives(self) -> dict[str, Life]:
        """What is known of each attempt that began."""
        found: dict[str, Life] = {}
        for word, attempt_id, gpus, milli, up, pid, node in self._lines():
            now_s = float(up)
            if word == "start":
                cards = tuple(gpus.split(",")) if gpus != "-" else ()
                found[attempt_id] = Life(attempt_id, cards, int(milli), int(pid), node, now_s, now_s, False)
            elif attempt_id in found:
                found[attempt_id] = found[attempt_id]._replace(last_s=now_s, ended=word == "end")
        return found

    def check(self) -> None:
        """Assert what holds of every run."""
        starts = self.starts()
        twice = {attempt_id for attempt_id in starts if starts.count(attempt_id) > 1}
        assert not twice, f"started twice: {sorted(twice)}"
        lives = list(self.lives().values())
        by_task: dict[str, list[Life]] = {}
        for life in sorted(lives, key=lambda life: life.start_s):
            by_task.setdefault(life.task, []).append(life)
        for row in by_task.values():
            for one, following in itertools.pairwise(row):
                assert one.last_s <= following.start_s, f"{one} overlaps {following}"
        self._check_cards(lives)

    def _check_cards(self, lives: list[Life]) -> None:
        for card in {gpu for life in lives for gpu in life.gpus}:
            here = [life for life in lives if card in life.gpus]
            # Ends come first: one that ends at the hundredth at which another starts has made room for it.
            moments = sorted([(life.last_s, 0, -life.gpu_milli) for life in here if life.last_s > life.start_s])
            moments += [(life.start_s, 1, life.gpu_milli) for life in here if life.last_s > life.start_s]
            carried = 0
            for at_s, _, milli in sorted(moments):
                carried += milli
                assert carried <= WHOLE_MILLI, f"{card} carries {carried} milli at {at_s}"

    def _lines(self) -> list[tuple[str, str, str, str, str, str, str]]:
        rows = []
        for line in self.path.read_text().splitlines():
            word, attempt, gpus, milli, up, pid, node = line.split(" ")
            rows.append((word, f"{TENANT}.{attempt}", gpus, milli, up, pid, node))
        return rows


def boot_s() -> float:
    """The clock of the witness's lines."""
    return float(Path("/proc/uptime").read_text().split()[0])


def pid_alive(pid: int) -> bool:
    """Whether there is such a process, zombies apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return os.path.exists(f"/proc/{pid}") and stat[stat.rfind(")") + 2] not in "ZX"
