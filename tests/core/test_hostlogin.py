"""Logging in without pasting: the client and this host's agent, with a scheduler that counts tokens."""

# ruff: noqa: N802 (the names of the methods are those of the API)

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cli_calls import Cli
from cli_fake import FakeCluster, serving, until

from gpushare.client import hostlogin
from gpushare.client.aio import AsyncClient
from gpushare.client.settings import load_settings, read_contexts
from gpushare.client.sync import Client
from gpushare.errors import GpushareError, error_of, to_status
from gpushare.join import encode_join
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j
from gpushare.v1 import tenant_pb2 as t

VARIABLES = ("GPUSHARE_SERVER", "GPUSHARE_TOKEN", "GPUSHARE_CA", "GPUSHARE_TENANT", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME")


class Guarded(FakeCluster):
    """Knows which tokens count."""

    def __init__(self) -> None:
        super().__init__()
        self.valid: set[str] = set()
        self.own_role = t.ROLE_USER
        self.tenants["nlp"] = t.Tenant(name="tenants/nlp")

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        said = dict(context.invocation_metadata()).get("authorization", "")
        if str(said).removeprefix("Bearer ") not in self.valid:
            context.abort_with_status(to_status(error_of(Reason.UNAUTHENTICATED, "The token has expired.")))
        super()._enter(method, request, context)

    def GetOwnToken(self, request: t.GetOwnTokenRequest, context: grpc.ServicerContext) -> t.Token:
        self._enter("GetOwnToken", request, context)
        own = t.Token(name="tokens/k7", user="ada", role=self.own_role, tenant="vision", unix_user="ada")
        own.expire_time.FromSeconds(2_000_000_000)
        return own

    def RevokeToken(self, request: t.RevokeTokenRequest, context: grpc.ServicerContext) -> t.Token:
        self._enter("RevokeToken", request, context)
        self.valid.clear()
        return t.Token(name=request.name, user="ada")


class Agent:
    """The socket's other end, in a thread: `asked` has the tenants, `said` what to answer in place of a login."""

    def __init__(self, cluster: Guarded, path: Path) -> None:
        self.cluster = cluster
        self.path = path
        self.asked: list[str] = []
        self.said: bytes | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                line = connection.makefile().readline()
                if not line:
                    return
                connection.sendall(self._answer(json.loads(line)["tenant"]))

    def _answer(self, tenant: str) -> bytes:
        self.asked.append(tenant)
        if self.said is not None:
            return self.said
        token = "gps_" + str(len(self.asked)).rjust(43, "0")
        self.cluster.valid.add(token)
        join = encode_join(self.cluster.address, token, "")
        return json.dumps({"join": join, "user": "ada", "tenant": tenant or "vision", "ttl_s": 1000}).encode() + b"\n"

    def refuse(self, reason: Reason, message: str) -> None:
        error = {"reason": reason, "message": message, "what_to_do": "Do this.", "metadata": {"k": "v"}}
        self.said = json.dumps({"error": error}).encode() + b"\n"

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._listener.close()


@pytest.fixture
def cluster() -> Iterator[Guarded]:
    with serving(Guarded()) as started:
        assert isinstance(started, Guarded)
        yield started


@pytest.fixture
def agent(cluster: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An account without any configuration on a host with an agent."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GPUSHARE_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("GPUSHARE_LOGIN_SOCKET", str(tmp_path / "login.sock"))
    made = Agent(cluster, tmp_path / "login.sock")
    yield made
    made.close()


@pytest.fixture
def environment(agent: Agent) -> dict[str, str]:
    """Of the command line: nothing but what `agent` has set."""
    return {}


def kept_files(agent: Agent) -> list[Path]:
    return list((agent.path.parent / "home" / ".cache" / "gpushare").glob("login-*"))


# -- without any configuration


def test_a_command_without_any_configuration_just_works_and_asks_once(gpushare: Cli, agent: Agent) -> None:
    for _ in range(3):
        done = gpushare("jobs")
        assert (done.code, done.err) == (0, "")
    assert agent.asked == [""]
    (kept,) = kept_files(agent)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_a_submit_goes_to_the_persons_own_tenant(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    assert gpushare("submit", "--gpus", "0.25", "--", "true").code == 0
    assert cluster.seen("CreateJob")[0].parent == "tenants/vision"


def test_the_tenant_is_the_persons_to_choose(
    gpushare: Cli, agent: Agent, cluster: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpushare("submit", "--gpus", "1", "--tenant", "nlp", "--", "true").code == 0
    monkeypatch.setenv("GPUSHARE_TENANT", "nlp")
    assert gpushare("submit", "--gpus", "1", "--", "true").code == 0
    assert agent.asked == ["nlp"], "what was kept for a tenant serves it, however it was named"
    assert [request.parent for request in cluster.seen("CreateJob")] == ["tenants/nlp"] * 2


def test_what_was_refused_is_said_and_not_kept(gpushare: Cli, agent: Agent) -> None:
    agent.refuse(Reason.HOST_NOT_TRUSTED, "the word of host n1 does not count")
    done = gpushare("jobs")
    assert done.code == 1
    assert done.err == "error: HOST_NOT_TRUSTED: the word of host n1 does not count (Do this)\n"
    agent.said = None
    assert gpushare("jobs").code == 0


def test_without_an_agent_the_way_in_is_named(gpushare: Cli, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUSHARE_LOGIN_SOCKET", "")
    for words in (("jobs",), ("login",), ("whoami",)):
        done = gpushare(*words)
        assert (done.code, "gpushare login JOIN" in done.err) == (1, True), done.err
    monkeypatch.setenv("GPUSHARE_LOGIN_SOCKET", str(agent.path) + "x")
    done = gpushare("jobs")
    assert (done.code, "No such file" in done.err, "gpushare login JOIN" in done.err) == (1, True, True), done.err


@pytest.mark.parametrize(
    "said", [b"", b"\n", b"hello\n", b"[]\n", b"{}\n", b'{"join": "x", "ttl_s": 1}\n', b"a" * 99_999]
)
def test_an_answer_that_is_none_is_a_refusal_and_no_traceback(gpushare: Cli, agent: Agent, said: bytes) -> None:
    agent.said = said
    done = gpushare("jobs")
    assert (done.code, done.err.count("\n"), done.err[:7]) == (1, 1, "error: ")
    assert "INTERNAL" not in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a socket away")
def test_a_socket_of_another_account_is_not_spoken_to(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 60_001)
    hostlogin.log_in(str(agent.path))  # root's, which is the agent's
    (child := subprocess.Popen([sys.executable, "-c", STRANGER, str(agent.path) + "2"], stdout=subprocess.PIPE))
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(GpushareError, match="60002"):
        hostlogin.log_in(str(agent.path) + "2")
    child.kill()
    child.wait(10)
    child.stdout.close()


STRANGER = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
os.setuid(60002)
s.listen()
print(flush=True)
time.sleep(60)
"""


# -- renewal


def test_a_token_is_renewed_before_it_ends_by_the_hosts_own_clock(agent: Agent) -> None:
    now_s = 5000.0
    first = hostlogin.log_in(str(agent.path), now_s=lambda: now_s)
    now_s += 899
    assert hostlogin.log_in(str(agent.path), now_s=lambda: now_s).token == first.token
    now_s += 2
    second = hostlogin.log_in(str(agent.path), now_s=lambda: now_s)
    assert second.token != first.token
    assert hostlogin.log_in(str(agent.path), now_s=lambda: now_s).token == second.token
    assert agent.asked == ["", ""]


def test_a_token_that_is_refused_is_renewed_without_a_word(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    assert gpushare("jobs").code == 0
    cluster.valid.clear()
    assert gpushare("jobs") == (0, gpushare("jobs").out, "")
    assert agent.asked == ["", ""]


def test_what_is_refused_again_is_said(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    assert gpushare("jobs").code == 0
    cluster.valid.clear()
    agent.refuse(Reason.LOGIN_UNMAPPED, "no tenant takes you")
    done = gpushare("jobs")
    assert (done.code, done.err.startswith("error: LOGIN_UNMAPPED: no tenant takes you")) == (1, True)


def test_open_streams_and_calls_at_once_go_on_over_a_renewal(agent: Agent, cluster: Guarded) -> None:
    job = cluster.add("1")

    async def watch() -> None:
        async with AsyncClient(load_settings()) as client:
            seen = client.watch_jobs()
            while not (await anext(seen)).caught_up:
                pass

            async def told() -> str:
                while not (answer := await anext(seen)).HasField("job"):
                    pass
                return answer.job.name

            cluster.valid.clear()
            await asyncio.gather(*(client.get_job(job.name) for _ in range(5)))
            cluster.faults["WatchJobs"] = [error_of(Reason.UNAUTHENTICATED, "The token has expired.")]
            cluster.drop_stream_after = 1
            cluster.put(job)
            assert await told() == job.name
            cluster.put(job)
            assert await told() == job.name
            await seen.aclose()

    asyncio.run(asyncio.wait_for(watch(), 30))
    # Five calls and a stream that were refused together asked once.
    assert agent.asked == ["", ""]


def test_the_synchronous_client_of_a_program_does_the_same(agent: Agent, cluster: Guarded) -> None:
    with Client(load_settings()) as client:
        assert list(client.list_jobs()) == []
        cluster.valid.clear()
        assert list(client.list_jobs()) == []


def test_a_pasted_token_that_has_ended_is_not_renewed(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    here = f'current = "c"\n[contexts.c]\nserver = "{cluster.address}"\ntoken = "gps_x"\n'
    (agent.path.parent / "config.toml").write_text(here)
    done = gpushare("jobs")
    assert (done.code, "UNAUTHENTICATED" in done.err, agent.asked) == (1, True, [])


# -- what goes before


def test_flags_environment_and_contexts_go_before_the_host(
    gpushare: Cli, agent: Agent, cluster: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.valid.add("gps_x")
    assert gpushare("--server", cluster.address, "--token", "gps_x", "jobs").code == 0
    monkeypatch.setenv("GPUSHARE_SERVER", cluster.address)
    monkeypatch.setenv("GPUSHARE_TOKEN", "gps_x")
    assert gpushare("jobs").code == 0
    assert agent.asked == []


def test_a_token_of_this_host_goes_to_its_own_scheduler_alone(gpushare: Cli, agent: Agent) -> None:
    done = gpushare("--server", "127.0.0.1:9", "jobs")
    assert (done.code, "There is no token for 127.0.0.1:9" in done.err, agent.asked) == (1, True, [])


# -- what is kept


def test_what_others_could_read_or_what_is_damaged_counts_as_none(agent: Agent) -> None:
    path = str(agent.path)
    first = hostlogin.log_in(path)
    (kept,) = kept_files(agent)
    kept.chmod(0o640)
    second = hostlogin.log_in(path)
    assert second.token != first.token
    for damage in (b"", b"{}", b"\xff", b'{"server": 1}', kept.read_bytes().replace(b'"ada"', b"7")):
        kept.write_bytes(damage)
        assert hostlogin.log_in(path).token not in (first.token, second.token)
    kept.unlink()
    kept.symlink_to(agent.path.parent / "elsewhere")
    third = hostlogin.log_in(path)
    assert hostlogin.log_in(path).token == third.token


def test_a_home_that_keeps_nothing_is_asked_each_time(gpushare: Cli, agent: Agent) -> None:
    (agent.path.parent / "home" / ".cache").touch()
    assert gpushare("jobs").code == 0
    assert gpushare("jobs").code == 0
    assert agent.asked == ["", ""]


def test_a_login_that_cannot_be_kept_leaves_no_token_behind(agent: Agent) -> None:
    hostlogin.log_in(str(agent.path))
    (kept,) = kept_files(agent)
    kept.unlink()
    (kept / "in the way").mkdir(parents=True)
    assert hostlogin.log_in(str(agent.path)).token
    assert list(kept.parent.iterdir()) == [kept]


def test_a_completion_asks_for_no_login_and_uses_the_one_that_is_kept(gpushare: Cli, agent: Agent) -> None:
    with pytest.raises(GpushareError, match="No scheduler is known"):
        load_settings(only_kept=True)
    assert agent.asked == []
    assert gpushare("jobs").code == 0
    kept = load_settings(only_kept=True)
    assert (kept.token, kept.tenant, agent.asked) == (load_settings().token, "vision", [""])


def test_the_run_time_directory_goes_before_the_cache(
    gpushare: Cli, agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert gpushare("jobs").code == 0
    assert len(list((tmp_path / "runtime" / "gpushare").glob("login-*.json"))) == 1
    assert kept_files(agent) == []


def test_where_the_socket_is_looked_for(agent: Agent, tmp_path: Path) -> None:
    assert hostlogin.find_socket({"GPUSHARE_LOGIN_SOCKET": "/x"}) == "/x"
    assert hostlogin.find_socket({"GPUSHARE_LOGIN_SOCKET": ""}) == ""
    own = tmp_path / "gpushare" / "login.sock"
    own.parent.mkdir()
    own.touch()
    if not os.path.exists(hostlogin.ROOTS_SOCKET):
        assert hostlogin.find_socket({"XDG_RUNTIME_DIR": str(tmp_path)}) == str(own)
        assert hostlogin.find_socket({}) == ""


# -- login, logout, whoami


def test_login_without_a_line_makes_a_context_without_a_token(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    done = gpushare("login", "--name", "here")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"logged in to {cluster.address} as ada of vision\n")
    text = (agent.path.parent / "config.toml").read_text()
    assert ("gps_" in text, str(agent.path) in text) == (False, True)
    assert gpushare("jobs").code == 0
    assert agent.asked == [""]


def test_login_for_one_of_several_tenants_is_remembered(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    assert gpushare("login", "--tenant", "nlp").code == 0
    cluster.valid.clear()
    assert gpushare("submit", "--gpus", "1", "--", "true").code == 0
    assert agent.asked == ["nlp", "nlp"]
    assert cluster.seen("CreateJob")[0].parent == "tenants/nlp"


def test_whoami_says_who_where_and_until_when(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    done = gpushare("whoami")
    lines = dict(line.split(":", 1) for line in done.out.splitlines())
    assert {key: value.strip() for key, value in lines.items() if key != "expires"} == {
        "user": "ada",
        "tenant": "vision",
        "role": "user",
        "runs as": "ada",
        "server": cluster.address,
        "token": "k7",
    }
    assert lines["expires"].endswith("renewed by this host")
    shown = gpushare("whoami", "-o", "json").json
    assert (shown["server"], shown["user"], shown["role"]) == (cluster.address, "ada", "ROLE_USER")


@pytest.mark.parametrize("with_context", [False, True])
def test_logout_revokes_and_forgets(gpushare: Cli, agent: Agent, cluster: Guarded, with_context: bool) -> None:
    assert gpushare(*(["login", "--name", "here"] if with_context else ["jobs"])).code == 0
    done = gpushare("logout")
    assert (done.code, done.out.startswith("logged out")) == (0, True), done.err
    assert [request.name for request in cluster.seen("RevokeToken")] == ["tokens/k7"]
    assert kept_files(agent) == []
    contexts = read_contexts(agent.path.parent / "config.toml")
    assert (contexts.current, dict(contexts.contexts)) == ("", {})
    assert len(agent.asked) == 1
    again = gpushare("logout")
    assert (again.code, "You are not logged in" in again.err) == (1, True)


def two_contexts(agent: Agent, cluster: Guarded) -> Path:
    cluster.valid.add("gps_x")
    path = agent.path.parent / "config.toml"
    path.write_text(
        f'current = "a"\n[contexts.a]\nserver = "{cluster.address}"\ntoken = "gps_x"\n'
        f'[contexts.b]\nserver = "127.0.0.1:9"\ntoken = "gps_y"\n'
    )
    return path


def test_contexts_lists_them_without_their_tokens_and_chooses_one(
    gpushare: Cli, agent: Agent, cluster: Guarded
) -> None:
    path = two_contexts(agent, cluster)
    shown = gpushare("contexts")
    assert (shown.code, "gps_" in shown.out) == (0, False)
    assert [line.split()[:3] for line in shown.out.splitlines()[1:]] == [
        ["a", "*", cluster.address],
        ["b", "-", "127.0.0.1:9"],
    ]
    assert gpushare("contexts", "b").out == "context 'b' is now the current one: 127.0.0.1:9\n"
    assert (read_contexts(path).current, list(read_contexts(path).contexts)) == ("b", ["a", "b"])
    shown = gpushare("contexts", "a", "-o", "json").json
    assert (shown["current"], [each["name"] for each in shown["contexts"]]) == ("a", ["a", "b"])
    before = path.read_bytes()
    refused = gpushare("contexts", "c")
    assert (refused.code, "There is no context 'c'" in refused.err) == (1, True)
    assert path.read_bytes() == before


def test_logout_of_a_pasted_line_leaves_other_contexts(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    path = two_contexts(agent, cluster)
    assert gpushare("logout").code == 0
    assert (read_contexts(path).current, list(read_contexts(path).contexts)) == ("", ["b"])
    assert cluster.valid == set()


def test_logout_of_what_cannot_be_ended_forgets_nothing_unless_told_to(
    gpushare: Cli, agent: Agent, cluster: Guarded
) -> None:
    path = two_contexts(agent, cluster)
    before = path.read_bytes()
    assert gpushare("--context", "b", "--timeout", "500ms", "logout").code == 3
    cluster.own_role = t.ROLE_ADMIN
    done = gpushare("logout")
    assert (done.code, "logout --local" in done.err) == (1, True)
    assert path.read_bytes() == before
    assert gpushare("--context", "b", "logout", "--local").code == 0
    assert gpushare("logout", "--local").code == 0
    assert cluster.seen("RevokeToken") == []
    assert dict(read_contexts(path).contexts) == {}


def test_logout_of_a_token_that_has_ended_already_is_fine(gpushare: Cli, agent: Agent, cluster: Guarded) -> None:
    path = two_contexts(agent, cluster)
    cluster.valid.clear()
    assert gpushare("logout").code == 0
    assert "a" not in read_contexts(path).contexts


def test_no_job_is_lost_sight_of(agent: Agent, cluster: Guarded) -> None:
    """What `run` follows for days outlives its token."""
    cluster.add("1", j.JOB_STATE_RUNNING)
    name = "tenants/vision/jobs/1"

    async def follow() -> None:
        async with AsyncClient(load_settings()) as client:
            waiting = asyncio.create_task(client.wait_jobs([name]))
            await asyncio.to_thread(until, lambda: cluster.seen("WatchJobs"), "it watches")
            cluster.valid.clear()
            cluster.drop_stream_after = 1
            cluster.put(cluster.jobs[name])
            await asyncio.to_thread(until, lambda: len(cluster.seen("WatchJobs")) > 1, "it watches again")
            cluster.end(cluster.jobs[name])
            assert (await waiting)[name].state == j.JOB_STATE_SUCCEEDED

    asyncio.run(asyncio.wait_for(follow(), 30))


# -- the admin's side


def test_an_admin_says_which_hosts_count_and_whose_people_a_tenant_takes(
    gpushare: Cli, agent: Agent, cluster: Guarded
) -> None:
    assert gpushare("node", "set", "node-1", "--trust-logins", "on").code == 0
    assert gpushare("node", "set", "node-1", "--trust-logins", "off").code == 0
    on, off = cluster.seen("UpdateNode")
    assert (on.trust_logins, off.trust_logins, off.HasField("trust_logins")) == (True, False, True)
    assert not on.HasField("compute_overcommit_milli")
    assert gpushare("tenant", "set", "vision", "--unix-user", "ada", "--unix-user", "bob.l").code == 0
    assert gpushare("tenant", "set", "vision", "--unix-group", "domain users", "--unix-user", "none").code == 0
    first, second = (request.settings for request in cluster.seen("UpdateTenant"))
    assert (list(first.unix_users), list(first.unix_groups), list(first.unset)) == (["ada", "bob.l"], [], [])
    assert (list(second.unix_users), list(second.unix_groups)) == ([], ["domain users"])
    assert list(second.unset) == ["unix_users"]
    for words in (
        ("node", "set", "node-1"),
        ("tenant", "set", "vision"),
        ("node", "set", "node-1", "--trust-logins", "x"),
    ):
        assert gpushare(*words).code == 2
