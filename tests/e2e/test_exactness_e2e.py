"""Shares are exact: what adds up to a card or to a limit fits, and one thousandth more does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from live_cluster import state_of, until
from shared_cluster import World

from gpushare.client import messages as m
from gpushare.client.spec import job_spec


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    """Each test has all cards to itself."""
    yield
    world.do(world.end_jobs())


def held(model: str = "", **options: str) -> m.JobSpec:
    """A job that keeps its slice until it is cancelled."""
    return job_spec(["sleep", "600"], working_directory="/", model=model, **options)  # type: ignore[arg-type]


def submit(world: World, *words: str, who: str = "ann") -> str:
    """Through the command line: the job's name."""
    quiet = ("--parsable", "--export", "none", "--chdir", "/")
    done = world.cli("submit", *quiet, *words, "--", "sleep", "600", who=who)
    assert done.code == 0, done
    tenant = "team" if who == "ann" else who
    return f"tenants/{tenant}/jobs/{done.out.strip()}"


def runs(world: World, names: list[str]) -> list[m.Job]:
    async def all_run() -> list[m.Job]:
        found = [await world.cluster.admin.get_job(name) for name in names]
        return found if all(state_of(job) == "RUNNING" for job in found) else []

    return world.do(until(all_run, f"{names} run"))


def waits(world: World, name: str, reason: str) -> m.Job:
    async def told() -> m.Job | None:
        job = await world.cluster.admin.get_job(name)
        assert state_of(job) == "QUEUED", job
        return job if job.wait.reason == reason else None

    found = world.do(until(told, f"{name} waits with {reason}"))
    assert found is not None
    return found


def carried(world: World, model: str) -> dict[str, tuple[int, int]]:
    """(thousandths, MiB) taken of each card of this model."""

    async def look() -> dict[str, tuple[int, int]]:
        nodes = [node async for node in world.cluster.admin.list_nodes()]
        cards = [gpu for node in nodes for gpu in node.gpus if gpu.model == model]
        return {gpu.uuid: (gpu.allocated_milli, gpu.allocated_mib) for gpu in cards}

    return world.do(look())


def fill(world: World, model: str, cards_left: int) -> None:
    """Takes cards of this model as whole ones until only so many are left."""
    count = len(carried(world, model)) - cards_left
    runs(world, [world.do(world.people["nina"].create_job(held(model, gpus="1"))).jobs[0].name for _ in range(count)])


def test_ten_tenths_fill_a_card_and_the_eleventh_waits(world: World) -> None:
    fill(world, "L40S", 1)
    names = [submit(world, "--gpus", "0.1", "--model", "L40S") for _ in range(10)]
    jobs = runs(world, names)
    assert len({uuid for job in jobs for task in job.tasks for uuid in task.gpu_uuids}) == 1
    eleventh = submit(world, "--gpus", "0.1", "--model", "L40S")
    waits(world, eleventh, "NO_CAPACITY")
    world.do(world.end_jobs(names[:1]))
    runs(world, [eleventh])


def test_a_tenth_and_two_tenths_fit_a_limit_of_three_tenths(world: World) -> None:
    world.do(world.add_tenant("exact"))
    assert world.cli("tenant", "set", "exact", "--limit", "0.3", who="root").code == 0
    names = [submit(world, "--gpus", share, "--model", "H100-80GB", who="exact") for share in ("0.1", "0.2")]
    runs(world, names)
    shown = world.cli("tenant", "show", "exact", "-o", "json", who="root").json
    assert (shown["runningChargeMilli"], shown["limitMilli"]) == ("300", "300")
    waits(world, submit(world, "--gpus", "0.001", "--model", "H100-80GB", who="exact"), "TENANT_LIMIT")


def test_three_of_333_leave_room_for_one_thousandth_and_not_for_two(world: World) -> None:
    fill(world, "L40S", 1)
    names = [submit(world, "--gpus", "0.333", "--model", "L40S") for _ in range(3)]
    runs(world, names)
    two = submit(world, "--gpus", "0.002", "--model", "L40S")
    waits(world, two, "NO_CAPACITY")
    one = world.do(world.people["ann"].create_job(held("L40S", gpus="0.001"))).jobs[0].name
    (job,) = runs(world, [one])
    assert job.tasks[0].gpu_milli == 1
    assert (1000, 0) not in carried(world, "L40S").values()
    assert max(milli for milli, _ in carried(world, "L40S").values()) == 1000


# With a share that follows from the memory each takes ceil(1000 x 2000 / 46068) = 44 thousandths, and 23 x 44 > 1000;
# with a smaller one of its own the memory alone decides, and 23 x 2000 <= 46068 < 24 x 2000.
@pytest.mark.parametrize(("options", "fit", "milli"), [({}, 22, 44), ({"gpus": "0.01"}, 23, 10)])
def test_24_times_2000_mib_do_not_fit_a_card_of_46068(
    world: World, options: dict[str, str], fit: int, milli: int
) -> None:
    fill(world, "L40S", 1)
    specs = [held("L40S", gpu_memory="2000M", **options) for _ in range(24)]
    names = list(world.do(world.people["ann"].batch_create_jobs(specs)).names)
    runs(world, names[:fit])
    for name in names[fit:]:
        waits(world, name, "NO_CAPACITY")
    assert (fit * milli, fit * 2000) in carried(world, "L40S").values()


def test_memory_alone_is_exact_to_the_mebibyte(world: World) -> None:
    fill(world, "L40S", 1)
    half = {"gpus": "0.1", "model": "L40S"}
    first, second = (
        world.do(world.people["ann"].create_job(held(**half, gpu_memory=f"{mib}M"))).jobs[0].name
        for mib in (23034, 23035)
    )
    runs(world, [first])
    waits(world, second, "NO_CAPACITY")
    runs(world, [world.do(world.people["ann"].create_job(held(**half, gpu_memory="23034M"))).jobs[0].name])


def halves_at_once(world: World) -> Counter[str]:
    """Sixteen half-card jobs at once on eight cards: how many each card got."""

    async def at_once() -> list[str]:
        client, spec = world.people["ann"], held("A100-80GB", gpus="0.5")
        answers = await asyncio.gather(*(client.create_job(spec) for _ in range(16)))
        return [answer.jobs[0].name for answer in answers]

    names = world.do(at_once())
    found = Counter(uuid for job in runs(world, names) for task in job.tasks for uuid in task.gpu_uuids)
    assert set(carried(world, "A100-80GB").values()) == {(1000, 81920)}
    world.do(world.end_jobs(names))
    return found


def test_sixteen_halves_at_once_are_two_per_card(world: World) -> None:
    assert sorted(halves_at_once(world).values()) == [2] * 8


@pytest.mark.prove
def test_sixteen_halves_at_once_are_two_per_card_in_100_of_100_runs(world: World) -> None:
    assert [sorted(halves_at_once(world).values()) for _ in range(100)] == [[2] * 8] * 100
