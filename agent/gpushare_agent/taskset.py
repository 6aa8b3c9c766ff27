"""All processes of one attempt as one thing that can be listed, signalled and killed until it is proven gone.

Imports the small modules that shim and agent share. Two kinds: by control group (exact), and by scanning
/proc where no groups can be made (weak). `end_step` is called again and again; only its True is a proof of
death. So is `suspend_step`, whose True is a proof that nothing of it runs until `resume`.
"""

from __future__ import annotations

from gpushare_agent import cgroupfs, procscan, signals

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `collections.abc` would cost this process a mebibyte
    from typing import Any

SCANS_FOR_PROOF = 2


class GroupedTask:
    """The processes of a v2 group and of the groups below it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def pids(self) -> set[int]:
        """The processes of the group and of all groups below it."""
        return cgroupfs.processes(self.directory)

    def signal(self, number: int) -> None:
        """To each."""
        procscan.signal_all(self.pids, number)

    def terminate(self) -> None:
        """SIGTERM to each, and SIGCONT so that a stopped one hears it."""
        self.signal(signals.SIGTERM)
        self.signal(signals.SIGCONT)

    def suspend_step(self) -> bool:
        """Stop them; True once the kernel says that all have stopped."""
        try:
            cgroupfs.freeze(self.directory, True)
        except OSError:
            return False  # the group is gone, and the end of it is being noticed
        return cgroupfs.frozen(self.directory)

    def resume(self) -> None:
        """Undo `suspend_step`."""
        try:
            cgroupfs.freeze(self.directory, False)
        except OSError:
            return

    def end_step(self) -> bool:
        """Kill what is left; True once the kernel says that nothing is."""
        if not cgroupfs.populated(self.directory):
            return True
        cgroupfs.kill(self.directory)
        return not cgroupfs.populated(self.directory)


class ScannedTask:
    """The processes that ancestry, session or environment tie to the attempt."""

    def __init__(self, scope: procscan.Scope) -> None:
        self.scope = scope
        self._empty_scans = 0

    def pids(self) -> set[int]:
        """What one scan of /proc finds."""
        return procscan.members(self.scope)

    def signal(self, number: int) -> None:
        """To each."""
        procscan.signal_all(self.pids, number)

    def terminate(self) -> None:
        """SIGTERM to each, and SIGCONT so that a stopped one hears it."""
        self.signal(signals.SIGTERM)
        self.signal(signals.SIGCONT)

    def suspend_step(self) -> bool:
        """SIGSTOP to each; True once one scan finds them all stopped. What has stopped forks no more."""
        if procscan.all_stopped(self.pids()):
            return True
        procscan.signal_all(self.pids, signals.SIGSTOP)
        return procscan.all_stopped(self.pids())

    def resume(self) -> None:
        """SIGCONT to each."""
        procscan.signal_all(self.pids, signals.SIGCONT)

    def end_step(self) -> bool:
        """Kill what one scan finds; True once two scans on end found nothing."""
        if self.pids():
            self._empty_scans = 0
            procscan.signal_all(self.pids, signals.SIGKILL)
            return False
        self._empty_scans += 1
        return self._empty_scans >= SCANS_FOR_PROOF


Task = GroupedTask | ScannedTask


def task_of(intent: dict[str, Any], scope: procscan.Scope | None) -> Task:
    """The attempt's task as the shim sees it: its own group is not in it. `scope` None: it has one."""
    return GroupedTask(intent["groups"]["task_dir"]) if scope is None else ScannedTask(scope)
