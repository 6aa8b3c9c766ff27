"""The way of one order to a running task: user, cards, fence, environment, launch.

Imports the executor, the fences' port and this package's pure parts. Invariants: nothing is launched unless its fence
stands and was read back after the intent was durable; a root agent that serves several users never launches without a
mapped user; a card that a stranger holds is not given away whole.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from gpushare.core.kinds import OnDisconnect, SignalTarget, VisibleDevices
from gpushare.reasons import Reason
from gpushare_agent import unixuser
from gpushare_agent.cardindexes import IndexDoubt, card_indexes
from gpushare_agent.core import StartOrder
from gpushare_agent.environment import job_environment
from gpushare_agent.executor import Executor, LaunchRefused, LaunchSpec, UnixUser
from gpushare_agent.gpus.port import GpuInfo, GpuSnapshot
from gpushare_agent.inpassing import in_passing
from gpushare_agent.scratch import ScratchSpace
from gpushare_agent.sharing.choose import ENFORCEMENT
from gpushare_agent.sharing.port import Fence, Fenced, FenceRefused, SliceSpec, Tier
from gpushare_agent.users import UserLookup

DEVICES = Path("/dev")
# Processes and threads of one attempt: far above what a program needs, far below what a fork bomb takes.
PIDS_MAX = 32_768
SCRATCH_TIMEOUT_S = 30.0


class FenceFailed(LaunchRefused):
    """What fences the card did not do its work: the next slice would fare no better."""


class LaunchSettings(msgspec.Struct, frozen=True):
    """`single_user`: every job runs as the agent's own user. `filters_devices`: the host can keep a job from the device
    files of cards it was not given."""

    node: str
    single_user: bool
    log_cap_bytes: int
    simulated: bool
    filters_devices: bool
    pids_max: int = PIDS_MAX


class Ready(msgspec.Struct, frozen=True):
    """What was found out before the fence: who it runs as, and the slice to fence (None for a CPU job)."""

    user: UnixUser
    slice: SliceSpec | None


class Cards(Protocol):
    """What a launch must know of the cards as they are now."""

    async def obstacle(self, spec: SliceSpec) -> tuple[Reason, str] | None:
        """Why this slice must not be launched by what is really on its cards; None when nothing is in its way."""

    async def look(self) -> GpuSnapshot:
        """Every card of the host, managed or not."""


class Launching:
    """Turns orders into launches. `info` describes a card, as it was registered."""

    def __init__(
        self,
        settings: LaunchSettings,
        executor: Executor,
        fence: Fence,
        users: UserLookup[UnixUser],
        scratch: ScratchSpace,
        info: Callable[[str], GpuInfo | None],
        cards: Cards,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._fence = fence
        self._users = users
        self._scratch = scratch
        self._info = info
        self._cards = cards
        self._self = unixuser.current() if settings.single_user else None

    async def ready(self, order: StartOrder) -> Ready:
        """Everything that can be refused without touching a card. Raises LaunchRefused."""
        user = self._self or await self._users.find(order.unix_user)
        if not order.gpu_uuids:
            return Ready(user, None)
        wanted = SliceSpec(
            attempt_id=order.attempt_id,
            gpu_uuids=order.gpu_uuids,
            gpu_milli=order.gpu_milli,
            gpu_memory_mib=order.gpu_memory_mib,
            whole=order.whole,
            uid=user.uid,
            gids=user.groups,
            # Not what the job asked for but what it was promised at placement: nothing weaker will do.
            demanded=ENFORCEMENT.get(Tier(order.tier)) if order.tier in set(Tier) else None,
        )
        found = await self._cards.obstacle(wanted)
        if found is not None:
            raise LaunchRefused(*found)
        return Ready(user, wanted)

    async def fence(self, order: StartOrder, ready: Ready) -> Fenced | None:
        """Build the fence and read it back; the same again gives the same. Raises LaunchRefused."""
        if ready.slice is None:
            return None
        try:
            fenced = await self._fence.prepare(ready.slice)
        except FenceRefused as err:
            if err.reason is Reason.FENCE_FAILED:
                raise FenceFailed(err.reason, err.detail) from err
            # What this slice asked for cannot be had here now; the scheduler tries again, here or elsewhere.
            raise LaunchRefused(Reason.FENCE_FAILED, f"{err.reason}: {err.detail}") from err
        if fenced.tier != order.tier:
            detail = f"placed for tier {order.tier!r}, but this node would fence it by {fenced.tier}"
            raise LaunchRefused(Reason.FENCE_FAILED, detail)
        return fenced if order.visible_devices is VisibleDevices.UUID else await self._by_index(order, fenced)

    async def _by_index(self, order: StartOrder, fenced: Fenced) -> Fenced:
        """The fence with the cards' indexes in place of their UUIDs, as the driver counts them at this moment."""
        snapshot = await self._cards.look()
        sees_no_others = bool(self._denied_devices(self._infos(order)))
        try:
            indexes = card_indexes(snapshot, order.gpu_uuids, fenced.tier, sees_no_others=sees_no_others)
        except IndexDoubt as err:
            raise FenceFailed(Reason.FENCE_FAILED, f"no index is sure for --visible-devices index: {err}") from err
        return msgspec.structs.replace(fenced, env=fenced.env | {"CUDA_VISIBLE_DEVICES": indexes})

    async def launch(
        self, order: StartOrder, ready: Ready, fenced: Fenced | None, stop_wanted: Callable[[], Reason | None]
    ) -> None:
        """Returns once the shim owns the attempt. Raises LaunchRefused, after which nothing of it runs."""

        async def read_back() -> None:
            # The fence's words must stand in the intent, so it was built before; now that the intent is durable it
            # is read back, and whatever changed in between refuses the launch.
            if await self.fence(order, ready) != fenced:
                raise FenceFailed(Reason.FENCE_FAILED, "the fence changed between being built and being read back")
            reason = stop_wanted()
            if reason is not None:
                raise LaunchRefused(Reason.NOT_STARTED, f"ended before it was started ({reason})")

        try:
            async with asyncio.timeout(SCRATCH_TIMEOUT_S):
                await in_passing(partial(self._scratch.make, order.attempt_id, ready.user))
        except TimeoutError:
            text = f"the disk of scratch_dir did not answer within {SCRATCH_TIMEOUT_S:g} s"
            raise LaunchRefused(Reason.INFRA, text) from None
        await self._executor.launch(self._spec(order, ready, fenced), read_back)

    def _infos(self, order: StartOrder) -> list[GpuInfo]:
        return [info for uuid in order.gpu_uuids if (info := self._info(uuid)) is not None]

    def _spec(self, order: StartOrder, ready: Ready, fenced: Fenced | None) -> LaunchSpec:
        settings = self._settings
        infos = self._infos(order)
        sim_dir = self._executor.private_dir(order.attempt_id) if settings.simulated and infos else None
        env = job_environment(
            order,
            node=settings.node,
            user=ready.user,
            card_total_mib=min((info.total_mib for info in infos), default=0),
            fence_env=fenced.env if fenced else {},
            scratch=self._scratch.path(order.attempt_id),
            sim_dir=sim_dir,
            stop_notice=self._executor.stop_notice(order.attempt_id),
        )
        early = order.early_signal
        return LaunchSpec(
            attempt_id=order.attempt_id,
            # The name of a stored script is the executor's to give.
            argv=("script", *order.argv) if order.script else order.argv,
            env=env,
            cwd=order.working_directory,
            log_cap_bytes=settings.log_cap_bytes,
            script=order.script or None,
            user=None if settings.single_user else ready.user,
            pty=order.pty,
            output_path=order.output_path,
            error_path=order.error_path,
            stdin=order.stdin,
            window_rows=order.window_rows,
            window_columns=order.window_columns,
            run_limit_ms=order.max_run_ms or None,
            grace_ms=order.grace_ms,
            early_signal=None if early is None else signal.Signals[f"SIG{early.signal}"].value,
            early_signal_ms=None if early is None else early.before_ms,
            early_signal_to_all=early is not None and early.target is SignalTarget.ALL,
            on_disconnect="stop_and_requeue" if order.on_disconnect is OnDisconnect.STOP_AND_REQUEUE else "keep",
            host_memory_mib=order.memory_mib or None,
            cpu_milli=order.cpu_milli or None,
            pids_max=settings.pids_max,
            denied_devices=self._denied_devices(infos),
            private_dir=sim_dir is not None,
        )

    def _denied_devices(self, granted: list[GpuInfo]) -> tuple[tuple[int, int], ...] | None:
        if self._settings.simulated or not self._settings.filters_devices:
            return None
        return other_cards(granted) or None


def other_cards(granted: list[GpuInfo], devices: Path = DEVICES) -> tuple[tuple[int, int], ...]:
    """(major, minor) of every card's device file but the granted ones'. Cards whose minor is unknown deny nothing."""
    if any(info.minor is None for info in granted):
        return ()
    mine = {f"nvidia{info.minor}" for info in granted}
    found = []
    for path in sorted(devices.glob("nvidia[0-9]*")):
        status = path.stat()
        if path.name not in mine and stat.S_ISCHR(status.st_mode):
            found.append((os.major(status.st_rdev), os.minor(status.st_rdev)))
    return tuple(found)
