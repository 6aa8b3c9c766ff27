"""Reservations and maintenance: what their windows do to schedules, which cards they get, and what is refused why."""

from __future__ import annotations

import pytest
from cluster import Cluster, card, user_of
from gantt import check_chart
from hypothesis import given, settings
from hypothesis import strategies as st

from gpushare.core import reservations
from gpushare.core.commands import CreateReservation, DeleteReservation, Outcome, RawResources, Rejection
from gpushare.core.decide_reservations import JOBS_IN_THE_WAY
from gpushare.core.events import AttemptStopRequested, CapacityHeld
from gpushare.core.model import Job
from gpushare.core.promises import CapacityHold, Reservation
from gpushare.reasons import Reason

MINUTE = 60_000
HOUR = 60 * MINUTE
YEAR = 365 * 24 * HOUR

CHARTS = {
    "no job of others whose limit crosses the window starts there": """
        tenant t
        tenant u
        node n 2
        reserve R gpus=1 tenant=u from=4 to=7
        job A gpus=1 limit=5
        job B gpus=1 limit=5
        job C gpus=1 limit=4
        n/0 CCCC---...
        n/1 AAAAABBBBB
    """,
    "the tenant runs in its window, and over its end where nobody waits": """
        tenant t
        tenant u
        node n 1
        reserve R gpus=1 tenant=u from=2 to=5
        job U gpus=1 limit=4 tenant=u at=3
        job A gpus=1 limit=2 tenant=t at=4
        n/0 ..-UUUUAA
    """,
    "the window's tenant does not delay the head past the window's end": """
        tenant t
        tenant u
        node n 1
        reserve R gpus=1 tenant=u from=2 to=5
        job A gpus=1 limit=3 tenant=t
        job U gpus=1 limit=3 tenant=u at=3
        job V gpus=1 limit=2 tenant=u at=3
        n/0 ..-VVAAAUUU
    """,
    "only the users named may use it": """
        tenant t
        node n 1
        reserve R gpus=1 tenant=t users=bea from=0 to=4
        job A gpus=1 limit=2 user=ann
        job B gpus=1 limit=2 user=bea at=1
        n/0 -BB-AA
    """,
    "a job without a limit waits for the window's end": """
        tenant t
        tenant u
        node n 1
        reserve R gpus=1 tenant=u from=3 to=5
        job A gpus=1 limit=0 runs=4
        n/0 ...--AAAA
    """,
    "every second hour: others run only where they fit in between": """
        tenant t
        tenant u
        node n 1
        reserve R gpus=1 tenant=u from=2 to=4 every=5
        job A gpus=1 limit=3
        job B gpus=1 limit=4
        job C gpus=1 limit=1
        job U gpus=1 limit=2 tenant=u at=7
        n/0 C.--AAAUU...--..
    """,
    "a recurring one ends with its last window": """
        tenant t
        tenant u
        node n 1
        reserve R gpus=1 tenant=u from=1 to=2 every=3 until=5
        job A gpus=1 limit=5
        n/0 .-..-AAAAA
    """,
    "maintenance: no job that would cross it starts there, the owner of the node included": """
        tenant t
        node n 1
        node m 1
        maintenance M nodes=n from=3 to=6
        job A gpus=1 limit=4
        job B gpus=1 limit=3
        job C gpus=1 limit=4
        n/0 BBBxxx..
        m/0 AAAACCCC
    """,
    "maintenance: what runs already runs on": """
        tenant t
        node n 1
        job A gpus=1 limit=0 runs=4
        maintenance M nodes=n from=2 to=6 at=1
        job B gpus=1 limit=1 at=2
        n/0 AAAAxxB
    """,
    "maintenance shuts CPU tasks out, too": """
        tenant t
        node n 1
        maintenance M nodes=n from=1 to=3
        job A gpus=0 limit=2
        job B gpus=1 limit=1
        n/0 Bxx..
    """,
    "half a card is reserved, the other half is not": """
        tenant t
        tenant u
        node n 1 lanes=4
        reserve R milli=500 tenant=u from=2 to=5
        job A milli=500 limit=6
        job B milli=500 limit=3
        job C milli=250 limit=2
        job U milli=500 limit=2 tenant=u at=3
        n/0.0 AAAAAA..
        n/0.1 AAAAAA..
        n/0.2 CC-UUBBB
        n/0.3 ..-UUBBB
    """,
    "what the tenant already runs there counts as its reservation": """
        tenant t
        tenant u
        node n 1 lanes=2
        job U milli=500 limit=6 tenant=u
        reserve R milli=500 tenant=u from=2 to=5 at=1
        job A milli=500 limit=4 at=2
        n/0.0 UUUUUU
        n/0.1 ..AAAA
    """,
    "forced over a running job: it runs on, then the cards are the window's": """
        tenant t
        tenant u
        node n 1
        job A gpus=1 limit=0 runs=4
        reserve R gpus=1 tenant=u from=2 to=7 force=1 at=1
        job B gpus=1 limit=2 at=1
        job U gpus=1 limit=2 tenant=u at=5
        n/0 AAAA-UUBB
    """,
    "deleted early, it sets its cards free": """
        tenant t
        tenant u
        node n 1
        reserve R gpus=1 tenant=u from=0 to=9
        job A gpus=1 limit=2
        unreserve R at=2
        n/0 --AA.
    """,
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_of_reservations(name: str) -> None:
    gantt = check_chart(CHARTS[name])
    for job, told in gantt.promises.items():
        assert gantt.starts.get(job, told[0]) <= told[0], f"{job} was promised slot {told}"


def test_a_reservation_that_is_over_leaves_the_state() -> None:
    gantt = check_chart("tenant t\nnode n 1\nreserve R gpus=1 tenant=t from=1 to=2\nn/0 .-..")
    assert not gantt.cluster.state.reservations


# -- making one


@pytest.fixture
def site() -> Cluster:
    """Tenants vision and nlp; nodes a (2 cards), b (4 cards), c (4 cards of another model)."""
    cluster = Cluster(tenants=("vision", "nlp"))
    cluster.node("a", 2)
    cluster.node("b", 4)
    cluster.node("c", 0)
    cluster.sync("c", gpus=tuple(card(f"GPU-c-{i}", i, 40_000, "A100") for i in range(4)))
    return cluster


def asked(cluster: Cluster, **fields: object) -> CreateReservation:
    base: dict[str, object] = {
        "name": "r",
        "tenant": "vision",
        "start_ms": cluster.now_ms + HOUR,
        "end_ms": cluster.now_ms + 2 * HOUR,
    }
    if not {"gpus", "gpu_milli", "gpu_memory_mib", "maintenance"} & fields.keys() and "nodes" not in fields:
        base["gpus"] = 1
    return CreateReservation(**{**base, **fields})  # type: ignore[arg-type]


def made(cluster: Cluster, **fields: object) -> Reservation:
    command = asked(cluster, **fields)
    cluster.must(command)
    return cluster.state.reservations[command.name]


def refused(cluster: Cluster, **fields: object) -> Rejection:
    before = cluster.state.encode()
    answer = cluster.do(asked(cluster, **fields))
    assert isinstance(answer, Rejection), answer
    assert cluster.state.encode() == before
    return answer


def running(cluster: Cluster, limit_ms: int | None = None, tenant: str = "nlp", **resources: int) -> Job:
    (job,) = cluster.submit(tenant, resources=RawResources(**resources), max_run_ms=limit_ms)
    cluster.cycle()
    cluster.run(job)
    assert job.live(), job
    return job


def where(reservation: Reservation) -> list[str]:
    return [c.gpu_uuid for c in reservation.cards]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"name": "Night"}, "name", "accepted"),
        ({"tenant": ""}, "tenant", "maintenance"),
        ({"gpus": 0}, "gpus", "1 or more"),
        ({"gpus": 1, "gpu_milli": 200}, "gpus", "two reservations"),
        ({"gpus": None}, "gpus", "is unset"),
        ({"gpu_milli": 1001}, "gpu_milli", "1 to 1000"),
        ({"gpu_memory_mib": 0}, "gpu_memory_mib", "1 MiB"),
        ({"users": ("Ann B",)}, "users", "accepted"),
        ({"detail": "a\0b"}, "detail", "NUL"),
        ({"start_ms": 5, "end_ms": 5}, "end_time", "not after the start"),
        ({"start_ms": 5, "end_ms": 10}, "end_time", "has passed"),
        ({"start_ms": -5}, "start_time", "1970"),
        ({"end_ms": 20 * YEAR}, "end_time", "ten years"),
        ({"end_ms": 2**62}, "end_time", "ten years"),
        ({"repeat_ms": HOUR - 1}, "repeat", "own length"),
        ({"repeat_ms": -1}, "repeat", "own length"),
        ({"repeat_ms": 2**63 * 1000}, "repeat", "ten years"),
        ({"start_ms": 10**9, "end_ms": 10**9 + 5, "repeat_ms": 10}, "repeat", "a minute"),
        ({"until_ms": 3 * HOUR}, "until_time", "recurs"),
        ({"repeat_ms": 24 * HOUR, "until_ms": 5}, "until_time", "after its start"),
        ({"start_ms": 0, "end_ms": 10, "repeat_ms": HOUR, "until_ms": 600_000}, "until_time", "has passed"),
        ({"maintenance": True, "nodes": ("a",)}, "tenant", "entitles nobody"),
        ({"maintenance": True, "tenant": ""}, "nodes", "name the nodes"),
        ({"maintenance": True, "tenant": "", "nodes": ("a",), "gpus": 1}, "gpus", "whole nodes"),
    ],
)
def test_a_bad_field_is_named(site: Cluster, fields: dict[str, object], field: str, says: str) -> None:
    answer = refused(site, **fields)
    assert (answer.reason, answer.field) == (Reason.INVALID_FIELD, field), answer
    assert says in answer.detail


def test_unknown_names_and_names_in_use(site: Cluster) -> None:
    assert refused(site, tenant="nobody").reason is Reason.NOT_FOUND
    assert refused(site, nodes=("z",), gpus=1).reason is Reason.NOT_FOUND
    made(site)
    assert refused(site).reason is Reason.ALREADY_EXISTS
    assert isinstance(site.do(DeleteReservation("z")), Rejection)
    assert isinstance(site.do(DeleteReservation("r")), Outcome)
    assert not site.state.reservations


def test_what_has_begun_begins_now_and_a_recurring_one_keeps_its_hours(site: Cluster) -> None:
    site.tick(100 * HOUR)
    now = site.now_ms
    assert made(site, start_ms=now - HOUR).start_ms == now
    daily = made(site, name="daily", start_ms=now - 50 * HOUR, end_ms=now - 48 * HOUR, repeat_ms=24 * HOUR)
    assert (daily.start_ms, daily.end_ms) == (now + 22 * HOUR, now + 24 * HOUR)


@pytest.mark.parametrize(
    ("fields", "cards"),
    [
        ({"gpus": 1}, ["GPU-a-0"]),
        ({"gpus": 2}, ["GPU-a-0", "GPU-a-1"]),
        ({"gpus": 3}, ["GPU-b-0", "GPU-b-1", "GPU-b-2"]),
        ({"gpus": 6, "gpu_model": "H100-80GB"}, ["GPU-a-0", "GPU-a-1", *(f"GPU-b-{i}" for i in range(4))]),
        ({"gpus": 1, "gpu_model": "A100"}, ["GPU-c-0"]),
        ({"gpus": 2, "nodes": ("b",)}, ["GPU-b-0", "GPU-b-1"]),
        ({"nodes": ("a",)}, ["GPU-a-0", "GPU-a-1"]),
        ({"gpu_milli": 300}, ["GPU-a-0"]),
        ({"gpu_memory_mib": 30_000, "gpu_model": "A100"}, ["GPU-c-0"]),
    ],
)
def test_cards_are_of_as_few_nodes_as_possible(site: Cluster, fields: dict[str, object], cards: list[str]) -> None:
    assert where(made(site, **fields)) == cards


def test_cpu_and_memory_come_with_the_cards(site: Cluster) -> None:
    node = site.state.nodes["b"]
    assert made(site, gpus=1, nodes=("b",)).hosts == (("b", node.cpu_milli // 4, node.memory_mib // 4),)
    whole = made(site, name="whole", nodes=("a",))
    assert whole.hosts == (("a", site.state.nodes["a"].cpu_milli, site.state.nodes["a"].memory_mib),)


def test_a_share_goes_to_the_card_that_it_fills_best(site: Cluster) -> None:
    (busy,) = running(site, gpu_milli=500, gpu_memory_mib=30_000).live()[0].slice.gpu_uuids
    share = made(site, gpu_milli=400, gpu_memory_mib=5_000)
    assert [(c.gpu_uuid, c.milli, c.mib) for c in share.cards] == [(busy, 400, 5_000)]
    assert where(made(site, name="more", gpu_milli=400)) != [busy]


def test_cards_that_are_surely_free_by_then_are_preferred(site: Cluster) -> None:
    """The job on a/0 has no limit; the one on a/1 ends in time."""
    endless, timely = running(site, gpus=1), running(site, HOUR // 2, gpus=1)
    assert [j.live()[0].slice.gpu_uuids for j in (endless, timely)] == [("GPU-a-0",), ("GPU-a-1",)]
    assert where(made(site, gpus=1, nodes=("a",))) == ["GPU-a-1"]


def test_jobs_in_the_way_are_named_with_their_ends(site: Cluster) -> None:
    endless, long = running(site, gpus=1), running(site, 3 * HOUR, gpus=1)
    answer = refused(site, gpus=2, nodes=("a",))
    assert answer.reason is Reason.RESERVATION_CONFLICT
    assert f"{endless.key} (no time limit)" in answer.detail
    assert f"{long.key} (ends by 1970-01-01T03:16:40Z)" in answer.detail
    assert "0 of the 2 cards" in answer.detail
    forced = site.must(asked(site, gpus=2, nodes=("a",), force=True))
    assert len(forced.notices[JOBS_IN_THE_WAY]) == 2
    assert all(a.is_live and not a.desired_stop for j in (endless, long) for a in j.attempts)


def test_the_tenants_own_jobs_are_not_in_the_way(site: Cluster) -> None:
    running(site, tenant="vision", gpus=2)
    assert where(made(site, nodes=("a",))) == ["GPU-a-0", "GPU-a-1"]
    running(site, tenant="vision", gpus=4, gpu_model="A100")
    assert refused(site, name="for-bea", users=("bea",), nodes=("c",)).reason is Reason.RESERVATION_CONFLICT


def test_a_job_that_holds_the_nodes_cpu_is_in_the_way(site: Cluster) -> None:
    job = running(site, gpus=0, cpu_milli=site.state.nodes["a"].cpu_milli - 1000)
    node = job.live()[0].slice.node
    answer = refused(site, nodes=(node,))
    assert answer.reason is Reason.RESERVATION_CONFLICT
    assert job.key in answer.detail
    assert made(site, gpus=1).nodes != (node,)


def test_reservations_in_the_way_are_named(site: Cluster) -> None:
    site.tick(100 * HOUR)
    made(site, name="first", nodes=("a",))
    answer = refused(site, name="second", gpus=1, nodes=("a",), force=True)
    assert answer.reason is Reason.RESERVATION_CONFLICT
    assert "reservations first" in answer.detail
    later = {"start_ms": site.now_ms + 2 * HOUR, "end_ms": site.now_ms + 3 * HOUR}
    made(site, name="third", gpus=1, nodes=("a",), **later)
    daily = {"start_ms": later["start_ms"] - 48 * HOUR, "end_ms": later["end_ms"] - 48 * HOUR, "repeat_ms": 24 * HOUR}
    assert "reservations third" in refused(site, name="fourth", nodes=("a",), **daily).detail
    assert where(made(site, name="elsewhere", gpus=1)) == ["GPU-b-0"]


def test_shares_of_one_card_add_up(site: Cluster) -> None:
    for number in range(2):
        assert where(made(site, name=f"r{number}", gpu_milli=400, nodes=("a",)))[0] == "GPU-a-0"
    assert where(made(site, name="r2", gpu_milli=400, nodes=("a",))) == ["GPU-a-1"]
    assert refused(site, name="r3", gpus=1, nodes=("a",)).reason is Reason.RESERVATION_CONFLICT


def test_more_than_there_is(site: Cluster) -> None:
    for fields in ({"gpus": 11}, {"gpus": 3, "nodes": ("a",)}, {"gpus": 1, "gpu_model": "B200"}):
        assert refused(site, **fields).reason is Reason.RESERVATION_NO_ROOM
    assert refused(site, gpu_memory_mib=100_000).reason is Reason.RESERVATION_NO_ROOM


def test_maintenance_is_never_refused_for_jobs_and_names_those_that_stay(site: Cluster) -> None:
    endless, timely = running(site, gpus=1), running(site, HOUR // 2, gpus=1)
    command = asked(site, tenant="", maintenance=True, nodes=("a", "b"))
    done = site.must(command)
    assert done.notices == {JOBS_IN_THE_WAY: (f"{endless.key} (no time limit)",)}
    assert timely.live()
    assert site.state.reservations["r"].nodes == ("a", "b")


def test_maintenance_over_a_reservation_takes_force(site: Cluster) -> None:
    made(site, name="first", nodes=("a",))
    fields = {"tenant": "", "maintenance": True, "nodes": ("a",)}
    assert "first" in refused(site, name="m", **fields).detail
    made(site, name="m", force=True, **fields)
    assert "m" in refused(site, name="again", nodes=("a",)).detail


# -- windows


def test_windows_present_next_and_none() -> None:
    once = Reservation("o", 100, 200)
    assert [reservations.window(once, t) for t in (0, 100, 199, 200)] == [(100, 200)] * 3 + [None]
    every = Reservation("e", 100, 200, repeat_ms=150, until_ms=400)
    assert [reservations.window(every, t) for t in (0, 199, 200, 249, 350)] == [
        (100, 200), (100, 200), (250, 350), (250, 350), None
    ]  # fmt: skip


@given(
    st.integers(0, 40), st.integers(1, 8), st.integers(0, 12), st.integers(0, 40),
    st.integers(0, 40), st.integers(1, 8), st.integers(0, 12), st.integers(0, 40),
)  # fmt: skip
@settings(max_examples=500, deadline=None)
def test_overlap_is_what_walking_the_calendar_finds(
    s1: int, l1: int, r1: int, u1: int, s2: int, l2: int, r2: int, u2: int
) -> None:
    one, other = (
        Reservation(name, s, s + length, repeat_ms=r and max(r, length), until_ms=(s + u) if r and u else 0)
        for name, s, length, r, u in (("a", s1, l1, r1, u1), ("b", s2, l2, r2, u2))
    )
    moments = range(600)
    busy = [{t for t in moments if (w := reservations.window(r, t)) and w.start_ms <= t} for r in (one, other)]
    assert reservations.overlap(one, other) == bool(busy[0] & busy[1])
    assert reservations.overlap(other, one) == bool(busy[0] & busy[1])


def test_claims_are_the_open_window_and_the_next_one(site: Cluster) -> None:
    made(site, start_ms=site.now_ms, end_ms=site.now_ms + HOUR, repeat_ms=24 * HOUR, nodes=("a",))
    found = reservations.claims(site.state, site.now_ms)
    assert [c.start_ms - site.now_ms for c in found] == [0, 24 * HOUR]
    assert reservations.next_change_ms(site.state, site.now_ms) == site.now_ms + HOUR
    later = site.now_ms + 2 * HOUR
    assert [c.start_ms - site.now_ms for c in reservations.claims(site.state, later)] == [24 * HOUR]
    assert reservations.next_change_ms(site.state, later) == site.now_ms + 24 * HOUR
    assert reservations.expired(site.state, later) == ()


def test_what_victims_still_hold_is_not_claimed_twice(site: Cluster) -> None:
    """Half of the card is being freed for a job that needs 700: others may use nothing of the rest but 0."""
    victim = running(site, gpu_milli=500)
    (waiting,) = site.submit("vision", resources=RawResources(gpu_milli=700))
    piece = victim.live()[0].slice
    hold = CapacityHold(waiting.key, (_of_size(piece, 700),), (victim.key,), site.now_ms)
    stop = AttemptStopRequested(victim.live()[0].id, Reason.PREEMPTED, claimant=waiting.key)
    site.apply([CapacityHeld(hold), stop])
    (claim,) = reservations.claims(site.state, site.now_ms)
    assert claim.job == waiting.key
    assert claim.cards[piece.node, piece.gpu_uuids[0]][0] == 200
    site.report(victim.live()[0], victim.live()[0].state.STOPPED, "PREEMPTED")
    (claim,) = reservations.claims(site.state, site.now_ms)
    assert claim.cards[piece.node, piece.gpu_uuids[0]][0] == 700


def _of_size(piece: object, milli: int) -> object:
    import msgspec

    return msgspec.structs.replace(piece, gpu_milli=milli)


def test_who_made_it_is_kept(site: Cluster) -> None:
    site.must(asked(site), user_of("vision", "root"))
    assert site.state.reservations["r"].created_by == "root"
