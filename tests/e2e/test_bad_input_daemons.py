"""Daemons under strange conditions: wrong configurations, a restart in the middle of a call, a cluster without nodes, a
job that attacks its own shim.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_cluster import TENANT, LiveCluster, clean_environment, live_cluster, run, state_of, until

from gpushare.client.aio import AsyncClient
from gpushare.client.messages import JobSpec, Role
from gpushare.client.settings import ConnectionSettings
from gpushare.client.spec import job_spec
from gpushare.errors import DeadlineExceededError, UnavailableError

# -- a configuration that is wrong

SCHEDULER = [
    ("an unknown key", 'listen = "127.0.0.1:0"\nlease_ttl = 15\n', 2, "lease_ttl"),
    ("a key twice", "lease_ttl_s = 15\nlease_ttl_s = 15\n", 2, "lease_ttl_s"),
    ("a wrong unit", '[caps]\n\nargv_max_bytes = "10s"\n', 3, "caps.argv_max_bytes"),
    ("a negative interval", 'lease_ttl_s = "-15s"\n', 1, "lease_ttl_s"),
    ("no TLS beyond loopback", 'insecure = true\nlisten = "0.0.0.0:0"\n', 1, "insecure"),
]


@pytest.mark.parametrize(("what", "text", "line", "key"), SCHEDULER, ids=[row[0] for row in SCHEDULER])
def test_a_scheduler_does_not_start_with_a_wrong_configuration(
    tmp_path: Path, what: str, text: str, line: int, key: str
) -> None:
    config = tmp_path / "scheduler.toml"
    config.write_text(text)
    refused(tmp_path, "gpushare.scheduler.main", config, f"{config}:{line}: {key}: ")


def test_an_agent_does_not_start_with_a_secret_that_others_can_read(tmp_path: Path) -> None:
    secret, config = tmp_path / "join", tmp_path / "agent.toml"
    secret.write_text("gpushare-join-very-secret")
    secret.chmod(0o644)
    config.write_text(f'join_file = "{secret}"\n')
    said = refused(tmp_path, "gpushare_agent.main", config, f"{secret}: join_file: ")
    assert "very-secret" not in said


def refused(home: Path, module: str, config: Path, *says: str) -> str:
    """The daemon ends with 1 and one line that `says` where the fault is, and has made nothing."""
    before = sorted(os.listdir(home))
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", str(config)],
        env={**clean_environment({"HOME": str(home), "XDG_STATE_HOME": str(home / "made")})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(("error: CONFIG_INVALID: ", "gpushare-agent: CONFIG_INVALID: "))
    assert len(done.stderr.splitlines()) == 1
    for text in says:
        assert text in done.stderr, done.stderr
    assert sorted(os.listdir(home)) == before
    return done.stderr


# -- a retry after a restart; a cluster without nodes


def test_a_request_whose_answer_was_lost_is_one_job_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with live_cluster(tmp_path / "home") as cluster:
            spec = job_spec(["true"], working_directory="/", gpu_memory="200G", name="once")
            lost = await _unanswered(cluster, "lost")
            answered = (await cluster.client.create_job(spec, request_id="answered")).jobs[0].name
            cluster.scheduler.kill()
            cluster.scheduler.start()
            again = (await cluster.client.create_job(spec, request_id="answered")).jobs[0].name
            assert again == answered
            first = (await cluster.client.create_job(_small(), request_id="lost")).jobs[0].name
            second = (await cluster.client.create_job(_small(), request_id="lost")).jobs[0].name
            assert first == second
            jobs = await cluster.jobs()
            assert sorted(jobs) == sorted({answered, first}), lost
            # Nothing is too large where no node has said yet what it has.
            await until(lambda: _waits(cluster, answered, "NO_NODES"), "it waits for nodes")

    run(test)


def _small() -> JobSpec:
    return job_spec(["true"], working_directory="/", gpus="0", name="small")


async def _unanswered(cluster: LiveCluster, request_id: str) -> str:
    """Sends a request to a scheduler that is stopped in the middle, and gives up on it."""
    cluster.scheduler.freeze()
    hasty = AsyncClient(cluster.client.settings, timeout_s=1.0)
    try:
        await hasty.create_job(_small(), request_id=request_id)
    except (DeadlineExceededError, UnavailableError) as err:
        return str(err)
    finally:
        await hasty.close()
        cluster.scheduler.thaw()
    raise AssertionError("a stopped scheduler has answered")


async def _waits(cluster: LiveCluster, name: str, reason: str) -> bool:
    return (await cluster.job(name)).wait.reason == reason


# -- a job against its shim


@pytest.fixture
def account() -> Iterator[str]:
    """A Unix account for one test."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a job runs as another Unix user, whom it makes for the test")
    if shutil.which("useradd") is None or shutil.which("userdel") is None:
        pytest.skip("needs useradd and userdel: a job runs as another Unix user, whom it makes for the test")
    name = f"gpushare-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", name], capture_output=True)
    if made.returncode:
        pytest.skip(f"needs a Unix account of its own, and useradd says: {made.stderr.decode().strip()}")
    try:
        yield name
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.mark.root
def test_a_job_cannot_stop_its_shim_and_its_limit_holds_though_it_stops_itself(account: str) -> None:
    home = Path(tempfile.mkdtemp(prefix="gpushare-e2e-"))  # pytest's own directories let no other user in
    home.chmod(0o711)

    async def test() -> None:
        async with live_cluster(home / "c") as cluster:
            await cluster.add_agent("n1", "1xL40S", single_user=False, containment="require")
            await cluster.ready()
            mapped, unmapped = [await _person(cluster, who, unix) for who, unix in (("joe", account), ("kim", ""))]
            text = "id -un; kill -STOP $PPID; kill -KILL $PPID; kill -STOP $$"
            spec = job_spec(["/bin/sh", "-c", text], working_directory="/", gpus="0.5", time="2s", grace="1s")
            name = (await mapped.create_job(spec)).jobs[0].name
            job = (await asyncio.wait_for(mapped.wait_jobs([name]), 60))[name]
            assert (state_of(job), job.reason, job.infra_retries) == ("FAILED", "TIME_LIMIT", 0)
            output = dict.fromkeys((1, 2), b"")
            for stream in output:
                async for chunk in mapped.stream_logs(name, stream=stream):  # type: ignore[arg-type]
                    output[stream] += chunk.data
            assert output[1].decode().split() == [account]
            assert output[2].lower().count(b"not permitted") == 2
            refused = (await unmapped.create_job(spec)).jobs[0].name
            job = (await asyncio.wait_for(unmapped.wait_jobs([refused]), 60))[refused]
            assert (state_of(job), job.reason) == ("FAILED", "UNIX_USER_UNMAPPED")
            for client in (mapped, unmapped):
                await client.close()

    try:
        run(test)
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def _person(cluster: LiveCluster, who: str, unix_user: str) -> AsyncClient:
    known = cluster.admin.settings
    made = await cluster.admin.create_token(who, Role.ROLE_USER, tenant=TENANT, unix_user=unix_user)
    return AsyncClient(ConnectionSettings(known.server, made.secret, known.ca_pem, TENANT, who))
