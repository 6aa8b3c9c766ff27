"""Fences: each tier keeps the promises of the port, and the best allowed one is chosen or refused with the cause."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from standins.fake_mps import CudaProcess, FakeMps, cuda_mode, short_folder, wait_for
from standins.fake_nvml import uuid_of
from standins.fence_conformance import TOTAL_MIB, FenceConformance, host_snapshot

from gpushare.reasons import Reason
from gpushare_agent.inventory import inventory_of
from gpushare_agent.sharing.choose import CardFences, clean_environ, driver_major
from gpushare_agent.sharing.environment import percentage
from gpushare_agent.sharing.exclusive import ExclusiveFence
from gpushare_agent.sharing.mps_daemon import find_daemon
from gpushare_agent.sharing.port import (
    CardTiers,
    Enforcement,
    Fence,
    Fenced,
    FenceRefused,
    SliceSpec,
    Tier,
)
from gpushare_agent.sharing.timeslice import TimesliceFence

QUICK = {"control_timeout_s": 2.0, "start_timeout_s": 5.0, "server_timeout_s": 5.0, "stop_timeout_s": 2.0}
SHARE = SliceSpec(
    attempt_id="t.1.0.1", gpu_uuids=(uuid_of(0),), gpu_milli=250, gpu_memory_mib=12_288, whole=False, uid=os.getuid()
)
WHOLE = msgspec.structs.replace(SHARE, gpu_milli=1000, gpu_memory_mib=TOTAL_MIB, whole=True)


def end_daemons(folder: Path) -> None:
    """End the MPS daemons that were left running, as they are meant to be."""
    for index in range(8):
        pipe = folder / "run" / "mps" / f"{index:08x}0000"
        pid = find_daemon(pipe, uuid_of(index))
        if pid is not None:
            os.kill(pid, 9)
            wait_for(lambda pipe=pipe, index=index: find_daemon(pipe, uuid_of(index)) is None)


@pytest.fixture
def mps() -> Iterator[FakeMps]:
    folder = short_folder()
    yield FakeMps.installed(folder)
    end_daemons(folder)
    shutil.rmtree(folder)


def fences(mps: FakeMps, **settings: object) -> CardFences:
    chosen = {"single_user": os.geteuid() != 0, **settings}
    return CardFences(mps.folder / "run", environ=mps.environ(), timeouts=QUICK, **chosen)  # type: ignore[arg-type]


def on_host(fence: CardFences, body: Callable[[], Awaitable[None]], **snapshot: object) -> None:
    """Probe, run, close."""

    async def run() -> None:
        await fence.probe(host_snapshot(**snapshot))  # type: ignore[arg-type]
        await fence.recover([])
        try:
            await body()
        finally:
            await fence.close()

    asyncio.run(run())


class TestExclusive(FenceConformance):
    @pytest.fixture
    def make_fence(self) -> Callable[[], Fence]:
        return ExclusiveFence

    @pytest.fixture
    def spec(self) -> SliceSpec:
        return WHOLE


class TestTimeslice(FenceConformance):
    @pytest.fixture
    def make_fence(self) -> Callable[[], Fence]:
        return TimesliceFence

    @pytest.fixture
    def spec(self) -> SliceSpec:
        return SHARE


class TestMps(FenceConformance):
    @pytest.fixture
    def make_fence(self, mps: FakeMps) -> Callable[[], Fence]:
        return lambda: fences(mps, allowed={Tier.MPS_V2})

    @pytest.fixture
    def spec(self) -> SliceSpec:
        return SHARE


class TestAllTiers(FenceConformance):
    @pytest.fixture
    def make_fence(self, mps: FakeMps) -> Callable[[], Fence]:
        return lambda: fences(mps)

    @pytest.fixture
    def spec(self) -> SliceSpec:
        return msgspec.structs.replace(WHOLE, gpu_uuids=(uuid_of(0), uuid_of(1)))


# -- what is offered


def offered(card: CardTiers) -> dict[Tier, bool]:
    return {offer.tier: offer.available for offer in card.offers}


def report_of(fence: CardFences, **snapshot: object) -> tuple[CardTiers, ...]:
    found: list[CardTiers] = []

    async def run() -> None:
        found.extend((await fence.probe(host_snapshot(**snapshot))).cards)  # type: ignore[arg-type]
        await fence.close()

    asyncio.run(run())
    return tuple(found)


def test_without_the_mps_programs_the_tier_is_not_offered_and_the_report_says_why(tmp_path: Path) -> None:
    bare = CardFences(tmp_path, environ={"PATH": str(tmp_path)})
    for card in report_of(bare):
        assert offered(card) == {Tier.EXCLUSIVE: True, Tier.MPS_V2: False, Tier.TIMESLICE: True}
        (why,) = [offer.detail for offer in card.offers if offer.tier is Tier.MPS_V2]
        assert "nvidia-cuda-mps-control and nvidia-cuda-mps-server not found on PATH" in why
        assert card.client_slots == 0


def test_with_mps_every_card_offers_it_with_its_slots(mps: FakeMps) -> None:
    for card in report_of(fences(mps), cards=8):
        assert card.available() == (Tier.EXCLUSIVE, Tier.MPS_V2, Tier.TIMESLICE)
        assert card.client_slots == 48
        assert card.multiuser == (os.geteuid() == 0)
    assert sorted(path.name for path in (mps.folder / "run" / "mps").glob("*0000")) == [
        f"{index:08x}0000" for index in range(8)
    ]


def test_a_server_that_cannot_start_here_is_found_out_at_start(mps: FakeMps) -> None:
    mps.switch(server_dies__=None)
    mps.switch(**{f"server_dies__{uuid_of(1)}": 1})
    (first,) = report_of(fences(mps, single_user=True), cards=1)
    assert offered(first)[Tier.MPS_V2]
    # The second never starts one, so that it does not matter how little time it is given.
    quick = CardFences(
        mps.folder / "run", single_user=True, environ=mps.environ(), timeouts={**QUICK, "server_timeout_s": 0.5}
    )
    _, second = report_of(quick)
    assert not offered(second)[Tier.MPS_V2]
    (why,) = [offer.detail for offer in second.offers if offer.tier is Tier.MPS_V2]
    assert "the MPS server does not start" in why
    # Nothing is left running where it does not work.
    assert find_daemon(mps.folder / "run" / "mps" / "000000010000", uuid_of(1)) is None


def test_a_card_that_others_use_is_not_tried_with_a_server(mps: FakeMps) -> None:
    from gpushare_agent.gpus.port import GpuProcess

    report_of(fences(mps), processes=(GpuProcess(pid=1, memory_mib=500),))
    assert mps.control(mps.folder / "run" / "mps" / "000000000000", "get_server_list\n").stdout == ""


@pytest.mark.parametrize(
    ("changes", "tiers"),
    [
        ({"mig_enabled": True}, ()),
        ({"compute_mode": "prohibited"}, ()),
        ({"compute_mode": "exclusive_process"}, (Tier.EXCLUSIVE, Tier.MPS_V2)),
        ({"simulated": True}, (Tier.EXCLUSIVE, Tier.TIMESLICE)),
    ],
)
def test_the_cards_settings_decide_what_is_offered(
    mps: FakeMps, changes: dict[str, object], tiers: tuple[Tier, ...]
) -> None:
    (card,) = report_of(fences(mps), cards=1, **changes)
    assert card.available() == tiers
    assert all(offer.detail for offer in card.offers if not offer.available)


def test_the_configuration_may_forbid_tiers(mps: FakeMps) -> None:
    (card,) = report_of(fences(mps, allowed={Tier.EXCLUSIVE}), cards=1)
    assert card.available() == (Tier.EXCLUSIVE,)
    assert {offer.detail for offer in card.offers if not offer.available} == {"the agent's configuration forbids it"}


def test_a_path_too_long_for_mps_is_said_so(mps: FakeMps) -> None:
    long = CardFences(mps.folder / ("x" * 80), single_user=True, environ=mps.environ(), timeouts=QUICK)
    (card,) = report_of(long, cards=1)
    (why,) = [offer.detail for offer in card.offers if offer.tier is Tier.MPS_V2]
    assert "longer than the 87 characters" in why


# -- what is chosen


def prepared(mps: FakeMps, *specs: SliceSpec, **settings: object) -> list[Fenced]:
    found: list[Fenced] = []
    fence = fences(mps, **settings)

    async def body() -> None:
        for spec in specs:
            found.append(await fence.prepare(spec))
            assert fence.tier_of(spec) is found[-1].tier

    on_host(fence, body)
    return found


def refusal(mps: FakeMps, spec: SliceSpec, **settings: object) -> FenceRefused:
    with pytest.raises(FenceRefused) as refused:
        prepared(mps, spec, **settings)
    return refused.value


def test_a_share_gets_mps_before_time_slices_and_a_whole_card_gets_itself(mps: FakeMps) -> None:
    other = msgspec.structs.replace(WHOLE, attempt_id="t.2.0.1", gpu_uuids=(uuid_of(1),))
    share, whole = prepared(mps, SHARE, other)
    assert (share.tier, share.enforcement) == (Tier.MPS_V2, Enforcement.SERVER)
    assert (whole.tier, whole.enforcement) == (Tier.EXCLUSIVE, Enforcement.HARD)
    (share,) = prepared(mps, SHARE, allowed={Tier.TIMESLICE})
    assert (share.tier, share.enforcement) == (Tier.TIMESLICE, Enforcement.SOFT)


@pytest.mark.parametrize(
    ("demanded", "tier"),
    [(None, Tier.MPS_V2), (Enforcement.SOFT, Tier.MPS_V2), (Enforcement.SERVER, Tier.MPS_V2), (Enforcement.HARD, None)],
)
def test_a_demanded_level_is_met_or_refused(mps: FakeMps, demanded: Enforcement | None, tier: Tier | None) -> None:
    spec = msgspec.structs.replace(SHARE, demanded=demanded)
    if tier is not None:
        assert prepared(mps, spec)[0].tier is tier
        return
    refused = refusal(mps, spec)
    assert refused.reason is Reason.FENCE_UNAVAILABLE
    assert "mps-v2: it is server and the job demands hard" in refused.detail
    assert "timeslice: it is soft" in refused.detail


def test_a_demand_for_a_server_is_not_met_by_time_slices(mps: FakeMps) -> None:
    spec = msgspec.structs.replace(SHARE, demanded=Enforcement.SERVER)
    refused = refusal(mps, spec, allowed={Tier.TIMESLICE})
    assert refused.reason is Reason.FENCE_UNAVAILABLE
    assert prepared(mps, WHOLE, allowed={Tier.EXCLUSIVE})[0].enforcement.meets(Enforcement.SERVER)


def test_a_job_beside_mps_is_kept_away_from_daemons_that_others_left(mps: FakeMps) -> None:
    (whole,) = prepared(mps, WHOLE)
    (share,) = prepared(mps, SHARE, allowed={Tier.TIMESLICE})
    for fenced in (whole, share):
        assert not Path(fenced.env["CUDA_MPS_PIPE_DIRECTORY"]).exists()
        assert cuda_mode(Path(fenced.env["CUDA_MPS_PIPE_DIRECTORY"])) == "no MPS"
        assert not {name for name in fenced.env if name.startswith("CUDA_MPS")} - {"CUDA_MPS_PIPE_DIRECTORY"}


def test_a_whole_card_ends_the_idle_mps_daemon_first_and_waits_for_shares(mps: FakeMps) -> None:
    fence = fences(mps)
    pipe = mps.folder / "run" / "mps" / "000000000000"
    whole = msgspec.structs.replace(WHOLE, attempt_id="t.2.0.1")

    async def body() -> None:
        await fence.prepare(SHARE)
        with pytest.raises(FenceRefused, match=r"still has shares: t\.1\.0\.1"):
            await fence.prepare(whole)
        await fence.release(SHARE.attempt_id)
        assert find_daemon(pipe, uuid_of(0)) is not None
        assert fence.own_pids()
        await fence.prepare(whole)
        assert find_daemon(pipe, uuid_of(0)) is None
        # And the next share finds MPS again.
        await fence.release(whole.attempt_id)
        assert (await fence.prepare(SHARE)).tier is Tier.MPS_V2

    on_host(fence, body)


def test_one_attempt_has_a_whole_card_at_a_time(mps: FakeMps) -> None:
    with pytest.raises(FenceRefused, match=r"still belongs to attempt t\.1\.0\.1"):
        prepared(mps, WHOLE, msgspec.structs.replace(WHOLE, attempt_id="t.2.0.1"))


def test_a_failing_mps_is_never_replaced_by_a_weaker_tier(mps: FakeMps) -> None:
    fence = fences(mps)

    async def body() -> None:
        mps.switch(misparse_mib=1)
        with pytest.raises(FenceRefused) as refused:
            await fence.prepare(SHARE)
        assert refused.value.reason is Reason.FENCE_FAILED

    on_host(fence, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to serve several users")
@pytest.mark.parametrize("driver", ["535.183.01", "550.54.15"])
def test_users_whom_one_server_cannot_serve_share_by_time_slices_and_the_card_says_so(
    mps: FakeMps, driver: str
) -> None:
    mps.switch(version=driver_major(driver))
    fence = fences(mps, single_user=False)
    alice = msgspec.structs.replace(SHARE, uid=1001)
    bob = msgspec.structs.replace(SHARE, uid=1002, attempt_id="t.2.0.1")
    strict = msgspec.structs.replace(bob, attempt_id="t.3.0.1", demanded=Enforcement.SERVER)
    snapshot = host_snapshot(cards=1, driver=driver)

    async def run() -> None:
        report = await fence.probe(snapshot)
        (card,) = inventory_of(snapshot.infos, {uuid_of(0): TOTAL_MIB}, report)
        (why,) = [offer.absent_because for offer in card.tiers if offer.tier == Tier.MPS_V2]
        assert "several Unix users" in why
        assert f"driver {driver}" in why
        # What the scheduler places by the inventory is what the agent then builds, whoever came first.
        offered = [offer.tier for offer in card.tiers if not offer.absent_because and offer.tier != Tier.EXCLUSIVE]
        for spec in (alice, bob):
            assert [(await fence.prepare(spec)).tier] == offered == [Tier.TIMESLICE]
        with pytest.raises(FenceRefused, match="several Unix users"):
            await fence.prepare(strict)
        await fence.close()

    asyncio.run(run())
    # No daemon of a tier that nobody will get stands on the card.
    assert find_daemon(mps.folder / "run" / "mps" / "000000000000", uuid_of(0)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon that is not root's has one user anyway")
def test_an_old_driver_serves_an_agent_of_one_user_through_mps(mps: FakeMps) -> None:
    mps.switch(version=550)
    (card,) = report_of(fences(mps, single_user=True), cards=1, driver="550.54.15")
    assert offered(card)[Tier.MPS_V2]
    assert not card.multiuser


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to serve several users")
def test_a_multiuser_server_takes_jobs_of_several_users(mps: FakeMps) -> None:
    alice = msgspec.structs.replace(SHARE, uid=1001)
    bob = msgspec.structs.replace(SHARE, uid=1002, attempt_id="t.2.0.1")
    assert [fenced.tier for fenced in prepared(mps, alice, bob)] == [Tier.MPS_V2, Tier.MPS_V2]


def test_clients_of_an_attempt_are_ended_through_its_server_alone(mps: FakeMps) -> None:
    fence = fences(mps)

    async def body() -> None:
        fenced = await fence.prepare(SHARE)
        client = CudaProcess(Path(fenced.env["CUDA_MPS_PIPE_DIRECTORY"]))
        assert client.mode == "MPS"
        done = await fence.terminate_clients(SHARE.attempt_id, [os.getpid(), 4_000_000])
        assert (sorted(done.ended), done.failed) == ([os.getpid(), 4_000_000], ())
        assert client.error() == "810"
        client.close()

    on_host(fence, body)


# -- words


@pytest.mark.parametrize(
    ("milli", "text"), [(1, "0.1"), (125, "12.5"), (250, "25"), (333, "33.3"), (1000, "100"), (10, "1")]
)
def test_thousandths_become_the_percentage_that_mps_reads(milli: int, text: str) -> None:
    assert percentage(milli) == text


def test_daemons_inherit_nothing_that_would_set_limits_or_tell_secrets() -> None:
    environ = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0", "NVIDIA_X": "1", "GPUSHARE_TOKEN": "s", "LANG": "C"}
    assert clean_environ(environ) == {"PATH": "/bin", "LANG": "C"}


@pytest.mark.parametrize(("version", "major"), [("580.159.03", 580), ("", 0), ("rubbish", 0)])
def test_driver_major(version: str, major: int) -> None:
    assert driver_major(version) == major
