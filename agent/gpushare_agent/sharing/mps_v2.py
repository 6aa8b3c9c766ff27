"""Tier `mps-v2`: the jobs on a card are clients of one MPS server that holds a ceiling over each of them.

Imports the ports and the daemon's module. The job's own limit stands in its environment; the server's
ceiling is the largest share on the card, so that a job that drops its limit still meets a wall: enforcement
`server`. Invariants: a job is launched only after the ceiling was set and read back, the server is ACTIVE,
and the job's own user was found able to reach the socket; any doubt refuses the launch. A card in doubt is
rebuilt as soon as it has no job.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import msgspec

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import GpuInfo, GpuSnapshot
from gpushare_agent.sharing.access import admit, why_deaf, why_unreachable
from gpushare_agent.sharing.environment import percentage, through_mps
from gpushare_agent.sharing.exclusive import why_no_jobs
from gpushare_agent.sharing.mps_control import ControlError, ceiling_mib, shown_limit
from gpushare_agent.sharing.mps_daemon import (
    MAX_PIPE_PATH,
    CardDaemon,
    DaemonError,
    MpsSettings,
    find_daemon,
    short_name,
)
from gpushare_agent.sharing.port import (
    CardTiers,
    Enforcement,
    Fenced,
    FenceRefused,
    SliceSpec,
    Termination,
    Tier,
    TierOffer,
    TierReport,
)

CLIENT_SLOTS = 48  # contexts that one card takes up to CUDA 13.0
PROBES_AT_ONCE = 4
TERMINATE_TRIES = 5
TERMINATE_PAUSE_S = 0.1


class _Card:
    """One card: its daemon, the attempts fenced on it, and what is in doubt."""

    def __init__(self, info: GpuInfo, settings: MpsSettings) -> None:
        self.info = info
        self.daemon = CardDaemon(settings, info.uuid)
        self.lock = asyncio.Lock()
        self.record = settings.folder / f"{short_name(info.uuid)}.json"
        # Until `recover` knows better, whoever is written down still runs: their server must not be
        # touched.
        self.attempts: dict[str, SliceSpec] = self.recall()
        self.answers: dict[str, Fenced] = {}
        self.directory_state = ""
        self.open_to_all = False
        # A doubt refuses nothing by itself but has the daemon rebuilt once the card is empty; a suspect
        # server takes no further client until then.
        self.doubt = ""
        self.suspect = ""

    def remember(self) -> None:
        """Write the attempts down: after a restart the agent must know who is behind this server."""
        fresh = self.record.with_suffix(".fresh")
        fresh.write_bytes(msgspec.json.encode(self.attempts))
        fresh.replace(self.record)

    def recall(self) -> dict[str, SliceSpec]:
        """What `remember` wrote last."""
        try:
            return msgspec.json.decode(self.record.read_bytes(), type=dict[str, SliceSpec])
        except (OSError, msgspec.DecodeError):
            return {}


class MpsFence:
    """`Fence` through one MPS daemon per card."""

    tier = Tier.MPS_V2

    def __init__(self, settings: MpsSettings, *, client_slots: int = CLIENT_SLOTS) -> None:
        self._settings = settings
        self._client_slots = client_slots
        self._cards: dict[str, _Card] = {}

    # -- what the cards can do

    async def probe(self, snapshot: GpuSnapshot) -> TierReport:
        """Try a daemon and a server on every card that nobody uses; on the others only look at what runs."""
        at_once = asyncio.Semaphore(PROBES_AT_ONCE)
        busy = {sample.uuid: bool(sample.processes) for sample in snapshot.samples}

        async def one(info: GpuInfo) -> CardTiers:
            card = self._cards.setdefault(info.uuid, _Card(info, self._settings))
            card.info = info
            async with at_once, card.lock:
                cause = await self._why_not(card, busy=busy.get(info.uuid, False))
            multiuser = not cause and self._settings.multiuser
            note = "compute is a cap per job, memory has a ceiling per server and each job's own limit"
            return CardTiers(
                uuid=info.uuid,
                offers=(
                    TierOffer(
                        tier=self.tier,
                        enforcement=Enforcement.SERVER,
                        available=not cause,
                        detail=cause or (note if multiuser else f"{note}; one Unix user at a time"),
                    ),
                ),
                multiuser=multiuser,
                client_slots=0 if cause else self._client_slots,
            )

        return TierReport(cards=tuple(await asyncio.gather(*(one(info) for info in snapshot.infos))))

    async def _why_not(self, card: _Card, *, busy: bool) -> str:
        if card.info.simulated:
            return "a simulated card has no MPS"
        if len(str(card.daemon.pipe)) > MAX_PIPE_PATH:
            return f"the path {card.daemon.pipe} is longer than the {MAX_PIPE_PATH} characters that MPS takes"
        cause = why_no_jobs(card.info)
        if cause or card.attempts:
            return cause
        left_over = find_daemon(card.daemon.pipe, card.info.uuid) is not None
        cause = await self._try(card, busy=busy)
        if cause and left_over and not busy:
            # What is wrong may be the daemon of an earlier agent: a new one gets its chance.
            cause = await self._try(card, busy=busy)
        return cause

    async def _try(self, card: _Card, *, busy: bool) -> str:
        """Whether a daemon and a server can be had now; "" or why not. An idle card's failure is cleared away."""
        try:
            await card.daemon.ensure()
            card.directory_state = card.daemon.directory_state()
            if not busy:
                await card.daemon.server_for(os.geteuid())
        except (DaemonError, ControlError) as err:
            if not busy:
                await self._rebuild(card)
            return f"MPS does not work here: {err.detail}"
        return ""

    # -- one slice

    def _other_user(self, spec: SliceSpec) -> str:
        """Why this job cannot join the card's server because of its user; "" if it can."""
        if self._settings.multiuser or not spec.gpu_uuids:
            return ""
        if os.geteuid() != 0:
            foreign = spec.uid != os.geteuid()
            return "an MPS daemon that is not root's serves its own user only" if foreign else ""
        card = self._cards.get(spec.gpu_uuids[0])
        others = card.attempts.values() if card else ()
        if any(held.uid != spec.uid for held in others):
            return "the card's MPS server serves jobs of another Unix user, and it takes one user at a time"
        return ""

    async def prepare(self, spec: SliceSpec) -> Fenced:
        """See `Fence.prepare`."""
        if spec.whole or len(spec.gpu_uuids) != 1:
            raise FenceRefused(Reason.FENCE_UNAVAILABLE, "the mps-v2 tier takes a share of one card only")
        (uuid,) = spec.gpu_uuids
        card = self._cards.get(uuid)
        if card is None:
            raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: this host has no such card")
        async with card.lock:
            # Asked again, everything is set, read back and tried again; only the words stay the same.
            known = card.answers.get(spec.attempt_id) if card.attempts.get(spec.attempt_id) == spec else None
            cause = self._why_no_room(card, spec)
            if cause:
                raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: {cause}")
            try:
                await self._ready(card)
                ceiling = await self._set_ceilings(card, spec)
                self._open_the_way(card, spec)
            except (DaemonError, ControlError) as err:
                card.doubt = err.detail
                raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: {err.detail}") from err
            except OSError as err:
                card.doubt = str(err)
                raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: {err}") from err
            card.answers[spec.attempt_id] = known or self._fenced(card, spec, ceiling)
            return card.answers[spec.attempt_id]

    def _fenced(self, card: _Card, spec: SliceSpec, ceiling: int) -> Fenced:
        everybody = "; every user of this host can reach the daemon" if card.open_to_all else ""
        limit = f"{spec.gpu_memory_mib} MiB and {percentage(spec.gpu_milli)} % for each process"
        wall = f", under the server's ceiling of {ceiling} MiB"
        return Fenced(
            env=through_mps(spec, card.daemon.pipe),
            tier=self.tier,
            enforcement=Enforcement.SERVER,
            detail=f"{limit}{wall}{everybody}",
        )

    def _why_no_room(self, card: _Card, spec: SliceSpec) -> str:
        if not 1 <= spec.gpu_memory_mib <= card.info.total_mib or not 1 <= spec.gpu_milli <= 1000:
            return f"{spec.gpu_memory_mib} MiB and {spec.gpu_milli} milli are no share of {card.info.total_mib} MiB"
        if len({*card.attempts, spec.attempt_id}) > self._client_slots:
            return f"its {self._client_slots} client slots are taken"
        return self._other_user(spec)

    async def _ready(self, card: _Card) -> None:
        """A daemon in good order. On an empty card everything in doubt is built anew first."""
        if not card.attempts and (card.suspect or card.doubt):
            await card.daemon.stop()
            card.suspect = card.doubt = card.directory_state = ""
        if card.suspect:
            raise DaemonError(f"its MPS server is suspect until its jobs have ended: {card.suspect}")
        if card.attempts and not card.daemon.alive():
            raise DaemonError("its MPS control daemon is gone while jobs use its server; it is rebuilt after them")
        found = card.daemon.directory_state()
        if card.daemon.alive() and card.directory_state and card.directory_state != found:
            raise DaemonError(
                f"somebody changed the owner, mode or access list of {card.daemon.pipe}: "
                f"it was {card.directory_state!r} and is {found!r}"
            )
        await card.daemon.ensure()

    async def _set_ceilings(self, card: _Card, spec: SliceSpec) -> int:
        """Set the ceilings for the largest share on the card, for the next server and the running one; in
        MiB.
        """
        specs = [*card.attempts.values(), spec]
        limit = ceiling_mib(max(held.gpu_memory_mib for held in specs), card.info.total_mib)
        share = percentage(max(held.gpu_milli for held in specs))
        daemon = card.daemon
        printed = await daemon.control.ask(
            f"set_default_active_thread_percentage {share}",
            "get_default_active_thread_percentage",
            f"set_default_device_pinned_mem_limit 0 {limit}M",
            "get_default_device_pinned_mem_limit 0",
        )
        _check(printed[-1:], shown_limit(limit), f"a ceiling of {limit}M")
        _check_percentage(printed[-2:-1], share)
        log_before = daemon.log_size()
        server, fresh = await daemon.server_for(spec.uid)
        if fresh:
            logged = daemon.logged_limit_mib(log_before)
            if logged is not None:
                _check([str(logged)], str(limit), f"a ceiling of {limit}M", "the server's log")
                return limit
        printed = await daemon.control.ask(
            f"set_active_thread_percentage {server} {share}",
            f"get_active_thread_percentage {server}",
            f"set_device_pinned_mem_limit {server} 0 {limit}M",
            f"get_device_pinned_mem_limit {server} 0",
        )
        _check(printed[-1:], shown_limit(limit), f"a ceiling of {limit}M for the running server")
        _check_percentage(printed[-2:-1], share)
        return limit

    def _open_the_way(self, card: _Card, spec: SliceSpec) -> None:
        """Let the job's user in, see that it can get there, and that somebody listens. Written down last."""
        before = card.attempts.copy()
        card.attempts[spec.attempt_id] = spec
        try:
            self._admit(card)
            cause = why_unreachable(card.daemon.socket, spec.uid, {*spec.gids}) or why_deaf(card.daemon.socket)
            if cause:
                raise DaemonError(f"the job would run without MPS and without a limit: {cause}")
            if not card.daemon.alive():
                raise DaemonError("the MPS control daemon ended meanwhile")
            card.remember()
        except BaseException:
            card.attempts = before
            raise

    def _admit(self, card: _Card) -> None:
        card.open_to_all = not admit(card.daemon.pipe, {held.uid for held in card.attempts.values()})
        card.directory_state = card.daemon.directory_state()

    # -- the end of a slice

    async def release(self, attempt_id: str) -> None:
        """See `Fence.release`. The daemon stays for the next job, unless something about it is in doubt."""
        for card in self._cards.values():
            if attempt_id not in card.attempts:
                continue
            async with card.lock:
                card.attempts.pop(attempt_id, None)
                card.answers.pop(attempt_id, None)
                try:
                    card.remember()
                    if card.attempts and card.daemon.pipe.is_dir():
                        self._admit(card)
                except OSError as err:
                    card.doubt = str(err)
                if not card.attempts and (card.suspect or card.doubt):
                    await self._rebuild(card)

    async def _rebuild(self, card: _Card) -> None:
        """End what runs on an empty card; the next job starts it anew. What does not end stays in doubt."""
        try:
            await card.daemon.stop()
            card.suspect = card.doubt = card.directory_state = ""
        except (DaemonError, OSError) as err:
            card.suspect = str(err)

    async def vacate(self, uuid: str) -> None:
        """End the daemon and server of a card that is to be given away whole. FenceRefused if it has jobs."""
        card = self._cards.get(uuid)
        if card is None:
            return
        async with card.lock:
            if card.attempts:
                names = ", ".join(sorted(card.attempts))
                raise FenceRefused(Reason.FENCE_FAILED, f"{uuid} still has shares: {names}")
            try:
                await card.daemon.stop()
            except (DaemonError, OSError) as err:
                card.suspect = str(err)
                raise FenceRefused(Reason.FENCE_FAILED, f"{uuid}: {err}") from err

    async def recover(self, live: Sequence[SliceSpec]) -> None:
        """See `Fence.recover`. Daemons that answer are adopted; the others are ended once their jobs have."""
        alive = {spec.attempt_id: spec for spec in live}
        for card in self._cards.values():
            async with card.lock:
                card.attempts = {name: alive[name] for name in card.recall() if name in alive}
                try:
                    adopted = await card.daemon.adopt()
                    if card.attempts and not adopted:
                        card.suspect = "its MPS control daemon did not outlive the agent"
                    if adopted and card.daemon.pipe.is_dir():
                        self._admit(card)
                except (DaemonError, OSError) as err:
                    card.suspect = str(err)
                if card.suspect and not card.attempts:
                    await self._rebuild(card)

    def holds(self, attempt_id: str) -> bool:
        """Whether this attempt runs behind one of these servers."""
        return any(attempt_id in card.attempts for card in self._cards.values())

    def own_pids(self) -> frozenset[int]:
        """Pids of our own servers: they hold memory of the cards but are no strangers."""
        return frozenset().union(*(card.daemon.known_servers for card in self._cards.values()))

    async def terminate_clients(self, attempt_id: str, pids: Sequence[int]) -> Termination:
        """End the contexts of these clients through the server, so that a SIGKILL cannot hurt their
        neighbours.
        """
        for card in self._cards.values():
            if attempt_id in card.attempts:
                async with card.lock:
                    return await self._terminate(card, pids)
        return Termination(ended=tuple(pids))

    async def _terminate(self, card: _Card, pids: Sequence[int]) -> Termination:
        ended: list[int] = []
        failed: list[int] = []
        try:
            clients = {
                pid: server for server in await card.daemon.servers() for pid in await card.daemon.clients(server)
            }
            for pid in pids:
                its_server = clients.get(pid)
                done = its_server is None or await self._terminate_one(card, its_server, pid)
                (ended if done else failed).append(pid)
            detail = f"terminate_client failed for {failed}" if failed else ""
        except ControlError as err:
            failed = [pid for pid in pids if pid not in ended]
            detail = err.detail
        if failed:
            card.suspect = f"a client had to be killed with work in flight ({detail})"
        return Termination(ended=tuple(ended), failed=tuple(failed), detail=detail)

    async def _terminate_one(self, card: _Card, server: int, pid: int) -> bool:
        """The server answers 0 once the client's contexts are gone; a client that left by itself is gone
        too.
        """
        for attempt in range(TERMINATE_TRIES):
            if attempt:
                await asyncio.sleep(TERMINATE_PAUSE_S)
            printed = await card.daemon.control.ask(f"terminate_client {server} {pid}")
            if printed[-1:] == ["0"] or pid not in await card.daemon.clients(server):
                return True
        return False

    def suspect(self, attempt_id: str, cause: str) -> None:
        """See `Fence.suspect`: no further client until its jobs have ended and the server was rebuilt."""
        for card in self._cards.values():
            if attempt_id in card.attempts:
                card.suspect = card.suspect or cause

    async def close(self) -> None:
        """See `Fence.close`. Daemons go on: running jobs are their clients."""
        for card in self._cards.values():
            card.daemon.let_go()


def _check(printed: Sequence[str], wanted: str, asked: str, where: str = "the daemon") -> None:
    """Compare what was read back."""
    if list(printed) != [wanted]:
        said = printed[-1] if printed else "nothing"
        raise DaemonError(f"{asked} was asked for, but {where} says {said} instead of {wanted}")


def _check_percentage(printed: Sequence[str], wanted: str) -> None:
    try:
        said = float(printed[0])
    except (IndexError, ValueError):
        said = -1.0
    # One decimal is printed.
    if abs(said - float(wanted)) > 0.051:
        shown = printed[0] if printed else "nothing"
        raise DaemonError(f"a thread percentage of {wanted} was asked for, but the daemon says {shown}")
