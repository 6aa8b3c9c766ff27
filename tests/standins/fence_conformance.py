"""What every `Fence` keeps: subclass it in a test module and give it `fence` and `spec`.

Runs on each tier alone and on the fences of a host as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import DriverState, GpuInfo, GpuProcess, GpuSample, GpuSnapshot
from gpushare_agent.sharing.port import Enforcement, Fence, FenceRefused, SliceSpec, Termination
from standins.fake_nvml import uuid_of

TOTAL_MIB = 143771


def host_snapshot(
    cards: int = 2,
    *,
    driver: str = "580.159.03",
    processes: tuple[GpuProcess, ...] = (),
    **changes: object,
) -> GpuSnapshot:
    """A healthy host; `processes` run on every card, `changes` are fields of every `GpuInfo`."""
    infos, samples = [], []
    for index in range(cards):
        info = GpuInfo(
            uuid=uuid_of(index),
            index=index,
            minor=index,
            model="NVIDIA H200",
            total_mib=TOTAL_MIB,
            reserved_mib=600,
        )
        infos.append(msgspec.structs.replace(info, **changes))
        samples.append(GpuSample(uuid=uuid_of(index), free_mib=TOTAL_MIB - 600, processes=processes))
    return GpuSnapshot(
        state=DriverState.OK, driver_version=driver, infos=tuple(infos), samples=tuple(samples), taken_boot_ns=1
    )


class FenceConformance:
    """Override `make_fence` (a new fence of the same host each time) and `spec` (a slice it can fence on card 0)."""

    @pytest.fixture
    def make_fence(self) -> Callable[[], Fence]:
        pytest.fail("a conformance suite is run by a subclass that overrides this fixture")

    @pytest.fixture
    def spec(self) -> SliceSpec:
        pytest.fail("a conformance suite is run by a subclass that overrides this fixture")

    @pytest.fixture
    def use(self, make_fence: Callable[[], Fence]) -> Callable[[Callable[[Fence], Awaitable[None]]], None]:
        """Runs a body on a probed fence and closes it."""

        def run_it(body: Callable[[Fence], Awaitable[None]]) -> None:
            async def run() -> None:
                fence = make_fence()
                await fence.probe(host_snapshot())
                await fence.recover([])
                try:
                    await body(fence)
                finally:
                    await fence.close()

            asyncio.run(run())

        return run_it

    def test_the_report_names_every_card_once_and_explains_what_is_missing(self, make_fence) -> None:  # type: ignore[no-untyped-def]
        async def run() -> None:
            fence = make_fence()
            for snapshot in (host_snapshot(3), host_snapshot(3, compute_mode="prohibited")):
                report = await fence.probe(snapshot)
                assert [card.uuid for card in report.cards] == [info.uuid for info in snapshot.infos]
                for card in report.cards:
                    assert card.offers
                    assert all(offer.detail for offer in card.offers if not offer.available)
            assert all(card.available() == () for card in report.cards)
            await fence.close()

        asyncio.run(run())

    def test_a_fence_names_exactly_the_granted_cards_by_uuid(self, use, spec: SliceSpec) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            fenced = await fence.prepare(spec)
            assert fenced.env["CUDA_VISIBLE_DEVICES"] == ",".join(spec.gpu_uuids)
            assert fenced.env["CUDA_MPS_PIPE_DIRECTORY"]
            assert all(isinstance(value, str) for value in fenced.env.values())
            assert fenced.enforcement in set(Enforcement)
            assert fenced.detail

        use(body)

    def test_the_same_attempt_again_gets_the_same_answer(self, use, spec: SliceSpec) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            assert await fence.prepare(spec) == await fence.prepare(spec)

        use(body)

    def test_a_released_slice_can_be_had_again(self, use, spec: SliceSpec) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            for number in range(3):
                attempt = msgspec.structs.replace(spec, attempt_id=f"t.1.0.{number + 1}")
                await fence.prepare(attempt)
                await fence.release(attempt.attempt_id)

        use(body)

    def test_releasing_twice_or_what_was_never_fenced_is_harmless(self, use, spec: SliceSpec) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            await fence.release("t.9.0.1")
            await fence.prepare(spec)
            await fence.release(spec.attempt_id)
            await fence.release(spec.attempt_id)

        use(body)

    def test_a_card_that_this_host_does_not_have_is_refused(self, use, spec: SliceSpec) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            with pytest.raises(FenceRefused) as refused:
                await fence.prepare(msgspec.structs.replace(spec, gpu_uuids=("GPU-nowhere",)))
            assert refused.value.reason is Reason.FENCE_FAILED
            assert "GPU-nowhere" in refused.value.detail

        use(body)

    @pytest.mark.parametrize("uuids", [(), (uuid_of(0), uuid_of(1))])
    def test_a_share_is_of_exactly_one_card(self, use, spec: SliceSpec, uuids: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            with pytest.raises(FenceRefused):
                await fence.prepare(msgspec.structs.replace(spec, gpu_uuids=uuids, whole=False))

        use(body)

    def test_terminating_what_was_never_fenced_lets_it_be_killed(self, use, spec: SliceSpec) -> None:  # type: ignore[no-untyped-def]
        async def body(fence: Fence) -> None:
            assert await fence.terminate_clients("t.9.0.1", [11, 12]) == Termination(ended=(11, 12))

        use(body)

    def test_after_a_restart_live_attempts_keep_their_fence_and_dead_ones_lose_it(
        self, make_fence, spec: SliceSpec
    ) -> None:  # type: ignore[no-untyped-def]
        async def run() -> None:
            first = make_fence()
            await first.probe(host_snapshot())
            await first.prepare(spec)
            await first.close()
            second = make_fence()
            await second.probe(host_snapshot())
            await second.recover([spec])
            again = await second.prepare(spec)
            assert again.env["CUDA_VISIBLE_DEVICES"] == ",".join(spec.gpu_uuids)
            await second.close()
            third = make_fence()
            await third.probe(host_snapshot())
            await third.recover([])
            await third.prepare(msgspec.structs.replace(spec, attempt_id="t.2.0.1"))
            await third.close()

        asyncio.run(run())
