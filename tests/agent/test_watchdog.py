"""The watchdog's verdicts: who is over its memory, who left its fence, who is a stranger, and who is left in peace."""

from __future__ import annotations

import pytest

from gpushare.reasons import Reason
from gpushare_agent.gpus.port import DriverState, GpuProcess, GpuSample, GpuSnapshot
from gpushare_agent.sharing.port import SliceSpec, Tier
from gpushare_agent.sharing.watchdog import (
    CardUse,
    Findings,
    Held,
    Stranger,
    Verdict,
    WatchSettings,
    WatchState,
    card_use,
    launch_obstacle,
    watch,
)

CARD, OTHER = "GPU-a", "GPU-b"
SECOND_NS = 1_000_000_000


def process(pid: int, mib: int | None, *, mps: bool = False, kind: str = "compute", user: str = "eve") -> GpuProcess:
    return GpuProcess(pid=pid, memory_mib=mib, mps=mps, kind=kind, user=user)  # type: ignore[arg-type]


def card(*processes: GpuProcess, uuid: str = CARD, free_mib: int = 50_000, **more: object) -> GpuSample:
    used_mib = sum(row.memory_mib or 0 for row in processes)
    return GpuSample(uuid=uuid, used_mib=used_mib, free_mib=free_mib, processes=processes, **more)  # type: ignore[arg-type]


def look(*samples: GpuSample, at_s: float = 1.0, state: DriverState = DriverState.OK) -> GpuSnapshot:
    return GpuSnapshot(state=state, samples=samples, taken_boot_ns=int(at_s * SECOND_NS))


def share(name: str, mib: int = 1000, tier: Tier = Tier.TIMESLICE, uuid: str = CARD) -> dict[str, Held]:
    spec = SliceSpec(attempt_id=name, gpu_uuids=(uuid,), gpu_milli=250, gpu_memory_mib=mib, whole=False, uid=1000)
    return {name: Held(spec=spec, tier=tier)}


def whole(name: str, *uuids: str) -> dict[str, Held]:
    spec = SliceSpec(attempt_id=name, gpu_uuids=uuids, gpu_milli=1000, gpu_memory_mib=80_000, whole=True, uid=1000)
    return {name: Held(spec=spec, tier=Tier.EXCLUSIVE)}


def looks(
    snapshots: list[GpuSnapshot], attempt_of_pid: dict[int, str], held: dict[str, Held], own: tuple[int, ...] = ()
) -> list[Findings]:
    """The findings of looks in a row."""
    state, found = WatchState(), []
    for snapshot in snapshots:
        state, findings = watch(state, snapshot, attempt_of_pid, held, own)
        found.append(findings)
    return found


def verdicts(findings: list[Findings]) -> list[list[tuple[str, Reason]]]:
    return [[(one.attempt_id, one.reason) for one in look.verdicts] for look in findings]


def test_a_job_over_its_memory_is_named_with_both_figures_at_the_second_look() -> None:
    over = card(process(7, 700), process(8, 301))
    found = looks([look(over, at_s=1), look(over, at_s=2)], {7: "a", 8: "a"}, share("a"))
    assert verdicts(found) == [[], [("a", Reason.MEMORY_LIMIT)]]
    (verdict,) = found[1].verdicts
    assert (verdict.used_mib, verdict.pids) == (1001, (7, 8))
    assert "--gpu-memory" in verdict.detail
    assert "1001 MiB" in verdict.detail
    assert "1000 MiB" in verdict.detail


def near(findings: list[Findings]) -> list[list[tuple[str, int, int]]]:
    return [[(one.attempt_id, one.used_mib, one.limit_mib) for one in look.near_limit] for look in findings]


def test_a_job_is_told_once_when_it_has_taken_nearly_all_of_its_slice() -> None:
    looked = [look(card(process(7, mib)), at_s=n) for n, mib in enumerate((949, 950, 990, 860, 1000), 1)]
    found = looks(looked, {7: "a"}, share("a"))
    assert near(found) == [[], [("a", 950, 1000)], [], [], []]
    said = found[1].near_limit[0].sentence()
    assert "950 of the 1000 MiB" in said
    assert "95 %" in said
    assert "--gpu-memory" in said


def test_it_is_told_again_once_it_had_given_much_of_it_back() -> None:
    looked = [look(card(process(7, mib)), at_s=n) for n, mib in enumerate((960, 849, 960, 960), 1)]
    assert near(looks(looked, {7: "a"}, share("a"))) == [[("a", 960, 1000)], [], [("a", 960, 1000)], []]


def test_only_shares_have_a_limit_to_be_near_to_and_each_job_has_its_own() -> None:
    full = card(process(7, 500), process(8, 470), process(9, 10))
    found = looks([look(full)], {7: "a", 8: "a", 9: "b"}, share("a") | share("b"))
    assert near(found) == [[("a", 970, 1000)]]
    assert near(looks([look(card(process(7, 80_000)))], {7: "a"}, whole("a", CARD))) == [[]]


def test_a_look_that_reads_nothing_does_not_make_it_tell_again() -> None:
    high = card(process(7, 960))
    looked = [look(high, at_s=1), look(state=DriverState.HUNG, at_s=2), look(high, at_s=3)]
    assert near(looks(looked, {7: "a"}, share("a"))) == [[("a", 960, 1000)], [], []]


def test_exactly_the_limit_is_within_it() -> None:
    full = card(process(7, 1000))
    assert verdicts(looks([look(full, at_s=n) for n in range(1, 5)], {7: "a"}, share("a"))) == [[]] * 4


def test_two_looks_at_the_same_moment_are_one() -> None:
    over = card(process(7, 2000))
    found = looks([look(over, at_s=1), look(over, at_s=1.1), look(over, at_s=1.7)], {7: "a"}, share("a"))
    assert verdicts(found) == [[], [], [("a", Reason.MEMORY_LIMIT)]]


def test_a_peak_that_passes_is_forgotten() -> None:
    over, under = card(process(7, 2000)), card(process(7, 500))
    found = looks([look(over, at_s=1), look(under, at_s=2), look(over, at_s=3)], {7: "a"}, share("a"))
    assert verdicts(found) == [[], [], []]


def test_a_job_that_takes_what_others_were_promised_is_stopped_at_once() -> None:
    # b may still claim 900 MiB of its 1000, and only 800 are left.
    crowded = card(process(7, 2000), process(8, 100), free_mib=800)
    held = share("a") | share("b")
    assert verdicts(looks([look(crowded)], {7: "a", 8: "b"}, held)) == [[("a", Reason.MEMORY_LIMIT)]]
    roomy = card(process(7, 2000), process(8, 100), free_mib=900)
    assert verdicts(looks([look(roomy)], {7: "a", 8: "b"}, held)) == [[]]


def test_memory_is_counted_per_job_and_not_per_process() -> None:
    both = card(process(7, 600), process(8, 600), process(9, 600))
    held = share("a") | share("b")
    found = looks([look(both, at_s=1), look(both, at_s=2)], {7: "a", 8: "a", 9: "b"}, held)
    assert verdicts(found)[1] == [("a", Reason.MEMORY_LIMIT)]


def test_memory_that_the_driver_does_not_tell_accuses_nobody() -> None:
    unknown = card(process(7, None))
    assert verdicts(looks([look(unknown, at_s=n) for n in (1, 2, 3)], {7: "a"}, share("a"))) == [[]] * 3


def test_a_whole_card_has_no_limit_of_its_own() -> None:
    full = card(process(7, 140_000))
    assert verdicts(looks([look(full, at_s=n) for n in (1, 2, 3)], {7: "a"}, whole("a", CARD))) == [[]] * 3


def test_a_client_that_left_mps_is_a_bypass_at_the_second_look() -> None:
    left = card(process(7, 100, mps=True), process(8, 100, mps=False), process(99, 400))
    found = looks([look(left, at_s=1), look(left, at_s=2)], {7: "a", 8: "a"}, share("a", tier=Tier.MPS_V2), own=(99,))
    assert verdicts(found) == [[], [("a", Reason.LIMIT_BYPASS)]]
    assert found[1].verdicts[0].pids == (8,)
    assert "outside MPS" in found[1].verdicts[0].detail


@pytest.mark.parametrize(
    ("sample", "tier"),
    [
        (card(process(7, 100, mps=True)), Tier.MPS_V2),
        (card(process(7, 100, mps=False), mps_known=False), Tier.MPS_V2),
        (card(process(7, 100, mps=False), processes_known=False), Tier.MPS_V2),
        (card(process(7, 100, mps=False, kind="graphics")), Tier.MPS_V2),
        (card(process(7, 100, mps=False)), Tier.TIMESLICE),
        (card(error="GPU is lost", lost=True), Tier.MPS_V2),
    ],
    ids=["a client", "MPS list unknown", "lists unknown", "draws only", "other tier", "card lost"],
)
def test_nobody_is_accused_of_leaving_mps_without_proof(sample: GpuSample, tier: Tier) -> None:
    found = looks([look(sample, at_s=n) for n in (1, 2, 3)], {7: "a"}, share("a", tier=tier))
    assert verdicts(found) == [[]] * 3


def test_a_job_on_a_card_that_it_was_not_given_is_a_bypass() -> None:
    astray = look(card(process(7, 100)), card(process(7, 900), uuid=OTHER), at_s=1)
    again = look(*astray.samples, at_s=2)
    found = looks([astray, again], {7: "a"}, share("a"))
    assert verdicts(found) == [[], [("a", Reason.LIMIT_BYPASS)]]
    assert OTHER in found[1].verdicts[0].detail
    assert verdicts(looks([astray, again], {7: "a"}, whole("a", CARD, OTHER))) == [[], []]


def test_strangers_are_listed_with_pid_user_and_memory_and_shrink_the_card() -> None:
    sample = card(process(7, 100), process(50, 3000, user="mallory"), process(51, 200, user=""), process(99, 400))
    (findings,) = looks([look(sample)], {7: "a"}, share("a"), own=(99,))
    assert findings.cards == (
        CardUse(
            uuid=CARD,
            strangers=(
                Stranger(pid=50, user="mallory", memory_mib=3000),
                Stranger(pid=51, user="", memory_mib=200),
            ),
            stranger_mib=3200,
        ),
    )
    assert findings.cards[0].sentence() == "pid 50 of mallory holds 3000 MiB, pid 51 of an invisible user holds 200 MiB"
    assert findings.verdicts == ()


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (process(50, 63),),
        (process(50, 2000, kind="graphics"),),
        (process(7, 5000),),
        (process(99, 5000),),
    ],
    ids=["nobody", "below the threshold", "a display", "a job", "our server"],
)
def test_who_is_no_stranger(rows: tuple[GpuProcess, ...]) -> None:
    assert card_use(card(*rows), {7: "a"}, (99,)) == CardUse(uuid=CARD)


def test_a_stranger_of_unknown_size_counts_for_all_that_nobody_else_holds() -> None:
    sample = GpuSample(
        uuid=CARD, used_mib=9000, free_mib=1000, processes=(process(7, 2000), process(50, None), process(51, 10))
    )
    use = card_use(sample, {7: "a"})
    assert use.stranger_mib == 7000
    assert "pid 50 of eve holds an unknown amount" in use.sentence()


def test_a_look_without_a_driver_says_nothing_and_forgets_nothing() -> None:
    over = card(process(7, 2000))
    blind = look(at_s=2, state=DriverState.HUNG)
    found = looks([look(over, at_s=1), blind, look(over, at_s=3)], {7: "a"}, share("a"))
    assert verdicts(found) == [[], [], [("a", Reason.MEMORY_LIMIT)]]
    assert found[1] == Findings()


def test_a_card_in_trouble_is_left_out_and_the_others_are_watched() -> None:
    lost = GpuSample(uuid=CARD, error="GPU is lost", lost=True)
    over = card(process(8, 2000), uuid=OTHER)
    held = share("a") | share("b", uuid=OTHER)
    found = looks([look(lost, over, at_s=1), look(lost, over, at_s=2)], {7: "a", 8: "b"}, held)
    assert verdicts(found)[1] == [("b", Reason.MEMORY_LIMIT)]
    assert [use.uuid for use in found[1].cards] == [OTHER]


def test_what_a_job_uses_is_summed_over_its_processes_and_cards() -> None:
    rows = (
        GpuProcess(pid=7, memory_mib=100, sm_percent=30),
        GpuProcess(pid=8, memory_mib=200, sm_percent=90),
        GpuProcess(pid=9, memory_mib=5, sm_percent=None),
    )
    (findings,) = looks([look(card(*rows))], {7: "a", 8: "a", 9: "b"}, share("a") | share("b") | share("c"))
    use = {one.attempt_id: one for one in findings.jobs}
    assert (use["a"].used_mib, use["a"].sm_percent, use["a"].pids) == (300, 100, (7, 8))
    assert (use["b"].used_mib, use["b"].sm_percent) == (5, None)
    assert (use["c"].used_mib, use["c"].pids) == (0, ())


@pytest.mark.parametrize("number", [1, 3])
def test_the_number_of_looks_is_a_setting(number: int) -> None:
    state = WatchState()
    seen: list[tuple[Verdict, ...]] = []
    for at_s in (1, 2, 3):
        state, findings = watch(
            state,
            look(card(process(7, 2000)), at_s=at_s),
            {7: "a"},
            share("a"),
            settings=WatchSettings(looks=number),
        )
        seen.append(findings.verdicts)
    assert [bool(one) for one in seen] == [at >= number for at in (1, 2, 3)]


def test_what_stands_in_the_way_of_a_launch() -> None:
    stranger = card(process(50, 3000, user="mallory"), free_mib=5000)
    uses = {CARD: card_use(stranger, {})}
    small = share("a", 5000)["a"].spec
    assert launch_obstacle(small, look(stranger), uses) == ""
    assert "pid 50 of mallory holds 3000 MiB" in launch_obstacle(whole("b", CARD)["b"].spec, look(stranger), uses)
    needy = launch_obstacle(share("a", 5001)["a"].spec, look(stranger), uses)
    assert "5000 MiB free and 5001 MiB are needed" in needy
    assert "mallory" in needy
    lost = look(GpuSample(uuid=CARD, error="GPU is lost", lost=True))
    assert "GPU is lost" in launch_obstacle(small, lost, {})
    assert "does not show it" in launch_obstacle(small, look(), {})
