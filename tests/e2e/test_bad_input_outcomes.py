"""Strange requests that are accepted, or that a job does by itself: what comes of them is what was promised."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input_table import job
from leaks import processes_of
from live_cluster import attempt_state, state_of, states, until
from shared_cluster import LIMIT_S, LOG_CAP_MIB, World, request_id
from witness import pid_alive

from gpushare.client import messages as m
from gpushare.client.spec import job_spec
from gpushare.errors import GpushareError

MIB = 1 << 20
CPU_JOB = ("run", "--gpus", "0", "--export", "none", "--chdir", "/")


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    """A test that fails leaves no cards taken for the next."""
    yield
    world.do(world.end_jobs())


def shell(text: str, **options: object) -> m.JobSpec:
    return job_spec(["/bin/sh", "-c", text], **{"working_directory": "/", "gpus": "0", **options})  # type: ignore[arg-type]


def submitted(world: World, spec: m.JobSpec, who: str = "ann") -> str:
    return world.do(world.people[who].create_job(spec)).jobs[0].name


def ended(world: World, name: str, who: str = "ann") -> m.Job:
    return world.do(world.people[who].wait_jobs([name]))[name]


# -- 14, 25: what is unusual and good


def test_a_tenth_of_a_card_with_all_of_its_memory_is_the_whole_card(world: World) -> None:
    words = ("submit", "--parsable", "--gpus", "0.1", "--gpu-memory", "46068M", "--model", "L40S", "--export", "none")
    ids = [world.cli(*words, "--chdir", "/", "--", "sleep", "600").out.strip() for _ in range(3)]
    names = [f"tenants/team/jobs/{each}" for each in ids]
    first, second = world.do(world.cluster.in_state(names[:2], "RUNNING"))
    assert [task.charge_milli for found in (first, second) for task in found.tasks] == [1000, 1000]
    assert first.tasks[0].gpu_uuids != second.tasks[0].gpu_uuids
    third = world.cli("explain", ids[2], "-o", "json").json
    assert third["wait"]["reason"] == "NO_CAPACITY"
    world.do(world.end_jobs(names))


def test_emoji_for_people_arrive_as_they_were_sent(world: World) -> None:
    text = "\U0001f680" * 200
    name = submitted(world, job(m.Resources(gpus=0), display_name=text).job)
    assert ended(world, name).spec.display_name == text
    assert world.cli("job", name.rpartition("/")[2], "-o", "json").json["spec"]["displayName"] == text
    assert world.cli("tenant", "set", "nlp", "--display-name", text, who="root").code == 0
    assert world.cli("tenant", "show", "nlp", "-o", "json", who="root").json["displayName"] == text


# -- 31: LD_PRELOAD

PRELOAD = """
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
  char line[64];
  int file = open(getenv("PRELOADED") ? getenv("PRELOADED") : "/dev/null", O_WRONLY | O_APPEND);
  if (file < 0) return;
  int length = snprintf(line, sizeof line, "%d\\n", getpid());
  if (write(file, line, length) != length) _exit(99);
  close(file);
}
"""


def test_a_preloaded_library_is_in_the_job_and_in_nothing_of_ours(world: World, tmp_path: Path) -> None:
    library, loaded, gate = tmp_path / "evil.so", tmp_path / "loaded", tmp_path / "gate"
    (tmp_path / "evil.c").write_text(PRELOAD)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "evil.c"], check=True)
    loaded.touch()
    done = world.cli(
        *["submit", "--parsable", "--gpus", "0.1", "--model", "H100-80GB", "--export", "none", "--chdir", "/"],
        *["--env", f"LD_PRELOAD={library}", "--env", f"PRELOADED={loaded}", "--"],
        *["/bin/sh", "-c", f"echo $$; while [ ! -e {gate} ]; do /bin/sleep 0.2; done"],
    )
    name = f"tenants/team/jobs/{done.out.strip()}"
    (running,) = world.do(world.cluster.in_state([name], "RUNNING"))
    world.do(until(lambda: len(loaded.read_text().split()) >= 3, "the library is in several processes of the job"))
    shim = world.do(world.cluster.shim_pid("n1", running.tasks[0].attempt_id))
    ours = {shim, world.cluster.scheduler.pid, *(agent.pid for agent in world.cluster.agents.values())}
    holders = {pid for pid in processes_of(world.cluster.home) if str(library) in _read(pid, "maps")}
    assert ours & holders == set()
    assert {pid for pid in holders if _parent(pid) != shim and _parent(pid) not in holders} == set()
    gate.touch()
    assert state_of(ended(world, name)) == "SUCCEEDED"
    # The shim, the launcher and the agents never were the process that it was loaded into.
    assert not ours & {int(pid) for pid in loaded.read_text().split()}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    stat = _read(pid, "stat")
    return int(stat[stat.rfind(")") + 2 :].split()[1]) if stat else 0


# -- 36, 37: what cannot be executed

NO_PROGRAMS = {
    "missing": (["/no/such/program"], 127, errno.ENOENT),
    "missing from PATH": (["no-such-program"], 127, errno.ENOENT),
    "not executable": (["/etc/passwd"], 126, errno.EACCES),
    "a directory": (["/tmp"], 126, errno.EACCES),
    "below a file": (["/etc/passwd/x"], 127, errno.ENOTDIR),
}
SCRIPTS = {
    "CRLF": (b"#!/bin/sh\r\nexit 0\r\n", "CRLF"),
    "binary": (bytes(range(256)) * 8, "#!"),
    "a bad interpreter": (b"#!/no/such/interpreter\n", "/no/such/interpreter"),
}


@pytest.mark.parametrize("what", NO_PROGRAMS)
def test_a_command_that_cannot_be_executed_fails_once_with_the_cause(world: World, what: str) -> None:
    argv, code, number = NO_PROGRAMS[what]
    done = world.cli(*CPU_JOB, "--max-retries", "3", "--name", "unexecuted", "--", *argv)
    assert done.code == code, done
    assert "Traceback" not in done.err
    told = world.cli("job", "unexecuted", "-o", "json").json
    assert (told["state"], told["reason"], told["exitCode"]) == ("JOB_STATE_FAILED", "EXEC", code)
    assert f"{argv[0]}: {os.strerror(number)}" in told["detail"]
    assert (told["retries"], told["infraRetries"], told["tasks"][0]["number"]) == (0, 0, 1)


@pytest.mark.parametrize("what", SCRIPTS)
def test_a_script_that_cannot_be_executed_fails_with_the_cause(world: World, tmp_path: Path, what: str) -> None:
    script, says = SCRIPTS[what]
    file = tmp_path / "train.sh"
    file.write_bytes(script)
    done = world.cli(*CPU_JOB, "--name", "bad-script", str(file))
    assert done.code == 126, done
    told = world.cli("job", "bad-script", "-o", "json").json
    assert (told["state"], told["reason"]) == ("JOB_STATE_FAILED", "EXEC")
    assert says in told["detail"]
    # The node is none the worse for it.
    assert state_of(ended(world, submitted(world, shell("true")))) == "SUCCEEDED"


# -- 38 to 41: the same request again


def test_a_thousand_at_once_with_one_request_id_are_one_job(world: World) -> None:
    before = world.mark()

    async def all_at_once() -> list[m.CreateJobResponse]:
        client, spec, same = world.people["ann"], shell("true"), request_id()
        return await asyncio.gather(*(client.create_job(spec, request_id=same) for _ in range(1000)))

    answers = world.do(all_at_once())
    assert {len(answer.jobs) for answer in answers} == {1}
    (name,) = {answer.jobs[0].name for answer in answers}
    ended(world, name)
    assert sum("JobsCreated" in line for line in world.change_since(before)) == 1


def test_the_same_id_with_another_body_is_refused_with_both_hashes(world: World) -> None:
    request = job(m.Resources(gpus=0))
    request.request_id = request_id()
    first = m.CreateJobResponse.FromString(world.do(world.send("JobService/CreateJob", request)))
    ended(world, first.jobs[0].name)
    request.job.argv.append("--other")
    before = world.mark()
    with pytest.raises(GpushareError) as refused:
        world.do(world.send("JobService/CreateJob", request))
    assert (refused.value.status, refused.value.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    known, sent = (refused.value.metadata[key] for key in ("known_body_sha256", "body_sha256"))
    assert len(known) == len(sent) == 64
    assert known != sent
    assert world.change_since(before) == []


def test_the_same_id_of_another_tenant_is_another_request_and_outlives_the_job(world: World) -> None:
    both = []
    for who, tenant in (("ann", "team"), ("nina", "nlp")):
        request = job(m.Resources(gpus=0))
        request.parent, request.request_id = f"tenants/{tenant}", "the-same-in-both"
        answer = m.CreateJobResponse.FromString(world.do(world.send("JobService/CreateJob", request, who)))
        assert answer.jobs[0].tenant == tenant
        assert state_of(ended(world, answer.jobs[0].name, who)) == "SUCCEEDED"
        again = m.CreateJobResponse.FromString(world.do(world.send("JobService/CreateJob", request, who)))
        assert again.jobs[0].name == answer.jobs[0].name
        both.append(answer.jobs[0].name)
    assert len(set(both)) == 2


# -- 46 to 48: limits


def test_what_a_limit_holds_back_waits_with_the_figures_and_never_passes_it(world: World) -> None:
    world.do(world.add_tenant("capped", m.TenantSettings(limit_milli=500)))
    names = [
        submitted(world, shell("sleep 600", gpus=share, model="H100-80GB"), "capped") for share in ("0.3", "0.3", "0.6")
    ]
    world.do(until(lambda: _state(world, names[0], "RUNNING"), "the first runs"))
    for name, reason in ((names[1], "TENANT_LIMIT"), (names[2], "TENANT_LIMIT_NEVER")):
        told = world.cli("explain", name.rpartition("/")[2], "-o", "json", who="capped").json
        assert told["wait"]["reason"] == reason
        assert "0.5" in told["wait"]["detail"] or "500" in told["wait"]["detail"], told
    used = world.do(world.cluster.admin.get_tenant("tenants/capped")).running_charge_milli
    assert used == 300
    world.do(world.end_jobs(names))


def test_a_full_queue_refuses_with_the_time_to_come_back(world: World) -> None:
    world.do(world.add_tenant("queued", m.TenantSettings(limit_milli=0, max_queued_jobs=2)))
    names = [submitted(world, shell("true", gpus="1"), "queued") for _ in range(2)]
    before = world.mark()
    done = world.cli("submit", "--gpus", "1", "--", "true", who="queued")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: QUEUE_FULL: ")
    with pytest.raises(GpushareError) as refused:
        submitted(world, shell("true", gpus="1"), "queued")
    assert (refused.value.status, refused.value.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert refused.value.metadata["retry_after_s"] == "10"
    assert world.change_since(before) == []
    world.do(world.end_jobs(names))


def test_of_many_who_want_the_last_card_exactly_one_gets_it(world: World) -> None:
    holding = submitted(world, shell("sleep 600", gpus="1", model="L40S"))
    world.do(world.cluster.in_state([holding], "RUNNING"))

    async def race() -> list[str]:
        clients = [world.people["ann"], world.people["nina"]]
        spec = shell("sleep 600", gpus="1", model="L40S")
        answers = await asyncio.gather(*(clients[number % 2].create_job(spec) for number in range(20)))
        return [answer.jobs[0].name for answer in answers]

    names = world.do(race())
    world.do(until(lambda: _any(world, names, "RUNNING"), "one runs"))
    told = [world.do(world.cluster.admin.get_job(name)) for name in names]
    assert sorted(state_of(found) for found in told) == ["QUEUED"] * 19 + ["RUNNING"]
    assert {found.wait.reason for found in told if found.wait.reason} == {"NO_CAPACITY"}
    assert sum(len(found.tasks) for found in told) == 1
    world.do(world.end_jobs([holding, *names]))


def test_a_limit_that_is_lowered_ends_nothing_and_starts_nothing(world: World) -> None:
    world.do(world.add_tenant("lowered", m.TenantSettings(limit_milli=1000)))
    first = submitted(world, shell("sleep 600", gpus="0.8", model="H100-80GB"), "lowered")
    world.do(until(lambda: _state(world, first, "RUNNING"), "it runs"))
    assert world.cli("tenant", "set", "lowered", "--limit", "0.5", who="root").code == 0
    second = submitted(world, shell("sleep 600", gpus="0.1", model="H100-80GB"), "lowered")
    told = world.cli("explain", second.rpartition("/")[2], "-o", "json", who="lowered").json
    assert told["wait"]["reason"] == "TENANT_LIMIT"
    shown = world.cli("tenant", "show", "lowered", "-o", "json", who="root").json
    assert (int(shown["runningChargeMilli"]), int(shown["limitMilli"])) == (800, 500)
    assert world.do(_state(world, first, "RUNNING"))
    world.do(world.end_jobs([first]))
    world.do(until(lambda: _state(world, second, "RUNNING"), "the second starts once the first has made room"))
    world.do(world.end_jobs([second]))


async def _state(world: World, name: str, state: str) -> bool:
    return state_of(await world.cluster.admin.get_job(name)) == state


async def _any(world: World, names: list[str], state: str) -> bool:
    return any([await _state(world, name, state) for name in names])


# -- 67 to 70: ends


def test_cancelling_twice_or_too_late_or_too_early_is_no_error_and_an_end_stays(world: World) -> None:
    finished = submitted(world, shell("true"))
    assert state_of(ended(world, finished)) == "SUCCEEDED"
    for _ in range(2):
        done = world.cli("cancel", finished.rpartition("/")[2], "-o", "json")
        assert (done.code, done.json["jobs"][0]["state"]) == (0, "JOB_STATE_SUCCEEDED")

    waiting = submitted(world, shell("true", gpus="0.5", fence="hard"))
    done = world.cli("cancel", waiting.rpartition("/")[2], "-o", "json")
    assert (done.code, done.json["jobs"][0]["state"]) == (0, "JOB_STATE_CANCELLED")
    assert ended(world, waiting).tasks == []


def test_a_cancel_during_the_launch_is_heard_by_the_program_that_it_finds(world: World) -> None:
    draw = random.Random(11)

    async def race() -> list[str]:
        client = world.people["ann"]
        names = []
        for _ in range(30):
            # With a grace far longer than the test: whoever misses the SIGTERM would not be gone in time.
            names.append((await client.create_job(shell("exec sleep 600", grace="10m"))).jobs[0].name)
            await asyncio.sleep(draw.uniform(0, 0.02))
            for _ in range(2):
                await client.cancel_job(names[-1])
        return names

    names = world.do(race())
    for found in world.do(world.people["ann"].wait_jobs(names)).values():
        assert (state_of(found), found.reason, found.cancelled_by.user) == ("CANCELLED", "CANCELLED", "ann")
        assert found.signal in (0, 15)


def test_a_cancel_that_races_with_the_end_has_one_winner_for_good(world: World) -> None:
    draw = random.Random(3)

    async def race() -> list[str]:
        client = world.people["ann"]
        names = []
        for _ in range(40):
            names.append((await client.create_job(shell("sleep 0.02"))).jobs[0].name)
            await asyncio.sleep(draw.uniform(0, 0.06))
            await client.cancel_job(names[-1])
        return names

    before = world.mark()
    names = world.do(race())
    found = world.do(world.people["ann"].wait_jobs(names))
    first = {name: (state_of(each), each.reason, states(each)) for name, each in found.items()}
    assert {state for state, _, _ in first.values()} <= {"SUCCEEDED", "CANCELLED"}
    for name in names:
        world.do(world.people["ann"].cancel_job(name))
    again = {name: world.do(world.people["ann"].get_job(name)) for name in names}
    assert {name: (state_of(each), each.reason, states(each)) for name, each in again.items()} == first
    assert _ends_since(world, before.sequence, names) == dict.fromkeys(names, 1)


def _ends_since(world: World, sequence: int, names: list[str]) -> dict[str, int]:
    async def count() -> dict[str, int]:
        ends = dict.fromkeys(names, 0)
        async for event in world.cluster.admin.list_audit_events(kind="JobEnded"):
            if event.sequence <= sequence:
                break
            if event.subject in ends:
                ends[event.subject] += 1
        return ends

    return world.do(count())


def test_a_job_that_ignores_sigterm_is_killed_after_its_grace(world: World, tmp_path: Path) -> None:
    here = tmp_path / "deaf"
    name = submitted(world, shell(f"trap '' TERM; touch {here}; while :; do sleep 0.1; done", grace="1s"))
    world.do(until(here.exists, "it does not listen"))
    assert world.cli("cancel", name.rpartition("/")[2]).code == 0
    told = ended(world, name)
    assert (state_of(told), told.signal, told.exit_code) == ("CANCELLED", 9, 137)
    assert attempt_state(told.tasks[0]) == "STOPPED"


def test_a_child_that_its_parent_left_behind_ends_with_the_job(world: World, tmp_path: Path) -> None:
    file = tmp_path / "child"
    text = f"(trap '' TERM HUP; exec setsid sleep 600) & echo $! > {file}.new; mv {file}.new {file}; exit 0"
    name = submitted(world, shell(text, gpus="0.1", model="H100-80GB"))
    told = ended(world, name)
    assert (state_of(told), told.exit_code) == ("SUCCEEDED", 0)
    assert not pid_alive(int(file.read_text()))


# -- 73: output


def _logged(world: World, text: str) -> tuple[m.Job, list[m.StreamLogsResponse]]:
    """What a job printed on the node whose logs are small."""
    name = submitted(world, shell(text, gpus="0.1", model="L40S"))

    async def read() -> list[m.StreamLogsResponse]:
        return [chunk async for chunk in world.people["ann"].stream_logs(name)]

    return ended(world, name), world.do(read())


@pytest.mark.parametrize("body", ["yes | head -c 20000000", "head -c 20000000 /dev/zero | tr '\\0' x"])
def test_a_flood_of_output_is_capped_with_its_head_and_its_tail(world: World, body: str) -> None:
    told, chunks = _logged(world, f"echo first; {body}; echo last")
    assert state_of(told) == "SUCCEEDED"
    text = b"".join(chunk.data for chunk in chunks)
    skipped = sum(chunk.skipped_bytes for chunk in chunks)
    assert text.startswith(b"first\n")
    assert text.endswith(b"last\n")
    assert len(text) <= LOG_CAP_MIB * MIB
    assert len(text) + skipped == len("first\n") + 20_000_000 + len("last\n")
    kept = sum(file.stat().st_size for file in world.cluster.node_home("n2").rglob(f"*{told.tasks[0].attempt_id}*/*"))
    assert kept <= 3 * LOG_CAP_MIB * MIB
    done = world.cli_process("logs", told.id)
    assert (done.code, len(done.out)) == (0, len(text))
    assert str(skipped) in done.err.replace(",", ""), "the gap is told"


def test_a_job_that_prints_without_end_can_be_cancelled(world: World) -> None:
    name = submitted(world, shell("exec yes", gpus="0.1", model="L40S"))
    world.do(world.cluster.in_state([name], "RUNNING"))
    assert world.cli("cancel", name.rpartition("/")[2]).code == 0
    assert state_of(ended(world, name)) == "CANCELLED"


def test_output_that_would_drive_a_terminal_is_shown_and_not_obeyed(world: World) -> None:
    nasty = r"\033]52;c;ZXZpbA==\007\033[2J\033]0;title\007\033[31mred\033[0m\302\233 \033P1\033\\end\n"
    told, chunks = _logged(world, f"printf '{nasty}'")
    text = b"".join(chunk.data for chunk in chunks)
    assert b"\x1b]52;c;" in text, "the API has the bytes as they are"
    shown = _on_a_terminal(world, "logs", told.id)
    assert b"red" in shown
    assert b"end" in shown
    for sequence in (b"\x1b]", b"\x1b[2J", b"\x1bP", b"\x07", b"\x9b"):
        assert sequence not in shown.replace(b"\x1b[31m", b"").replace(b"\x1b[0m", b""), shown


def _on_a_terminal(world: World, *words: str) -> bytes:
    """What a command writes where stdout is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gpushare.cli.main", "--context", "ann", *words]
    with subprocess.Popen(command, env=world.cli_environment(), stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            text += data
        os.close(ours)
        assert process.wait(LIMIT_S) == 0, text
    return text
