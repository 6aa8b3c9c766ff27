"""A person of a trusted host types `gpushare run` and nothing else: real accounts, daemons and command lines."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from live_cluster import TENANT, LiveCluster, clean_environment, live_cluster, run, until

from gpushare.client.messages import TenantSettings

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes accounts and becomes them"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("useradd", "userdel", "groupadd", "groupdel", "setpriv"))),
        reason="needs useradd, groupadd and setpriv",
    ),
]
LIMIT_S = 60.0


class Person(NamedTuple):
    name: str
    uid: int
    home: Path


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@contextmanager
def _account(folder: Path, *options: str) -> Iterator[Person]:
    name = f"gpushare_{uuid.uuid4().hex[:8]}.x"
    home = folder / name
    made = subprocess.run(
        ["useradd", "--badname", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", *options, name],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"needs a Unix account of its own, and useradd says: {made.stderr.strip()}")
    try:
        uid = int(subprocess.run(["id", "-u", name], capture_output=True, check=True).stdout)
        home.mkdir()
        os.chown(home, uid, -1)
        yield Person(name, uid, home)
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that everybody may pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="gpushare-e2e-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def group() -> Iterator[str]:
    name = f"gpushare-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["groupadd", name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs a Unix group of its own, and groupadd says: {made.stderr.strip()}")
    yield name
    subprocess.run(["groupdel", name], check=True, capture_output=True)


@pytest.fixture
def person(folder: Path) -> Iterator[Callable[..., Person]]:
    """Makes accounts; they are gone afterwards."""
    with ExitStack() as made:
        yield lambda *options: made.enter_context(_account(folder, *options))


async def gpushare(who: Person, socket: Path, *words: str) -> Outcome:
    """As that account, which has no configuration whatever."""
    environment = {key: value for key, value in clean_environment().items() if not key.startswith("XDG_")}
    child = await asyncio.create_subprocess_exec(
        *["setpriv", f"--reuid={who.uid}", f"--regid={who.uid}", "--clear-groups"],
        # So that it may read this very program, wherever that lies.
        *["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"],
        *[sys.executable, "-m", "gpushare.cli.main", *words],
        env={**environment, "HOME": str(who.home), "GPUSHARE_LOGIN_SOCKET": str(socket)},
        cwd=who.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), LIMIT_S)
    assert child.returncode is not None
    return Outcome(child.returncode, out.decode(), err.decode())


async def trusted_host(cluster: LiveCluster, **settings: object) -> Path:
    """One node whose word counts; the path of its socket."""
    await cluster.add_agent("n1", "1xL40S", single_user=False, containment="require", **settings)
    await cluster.ready()
    await cluster.admin.update_node("nodes/n1", trust_logins=True)
    cluster.note_descriptors()
    socket = cluster.node_home("n1") / "run" / "login.sock"
    await until(socket.exists, "the agent listens")
    return socket


async def audited(cluster: LiveCluster, kind: str) -> list[tuple[str, str]]:
    """Which node said so, and of whom; oldest first."""
    found = [event async for event in cluster.admin.list_audit_events(kind=kind)]
    return [(e.principal.user, json.loads(e.detail_json)["principal"]["user"]) for e in reversed(found)]


def test_a_person_without_any_configuration_runs_a_job_as_themselves(
    folder: Path, person: Callable[..., Person], group: str
) -> None:
    ada, bob, eve = person(), person("--groups", group), person()

    async def test() -> None:
        async with live_cluster(folder / "c") as cluster:
            socket = await trusted_host(cluster)
            # Not a word about either, yet.
            done = await gpushare(ada, socket, "jobs")
            assert (done.code, "LOGIN_UNMAPPED" in done.err, f"--unix-user {ada.name}" in done.err) == (1, True, True)
            takes = TenantSettings(unix_users=[ada.name], unix_groups=[group])
            await cluster.admin.update_tenant(f"tenants/{TENANT}", takes)
            for who in (ada, bob):
                done = await gpushare(who, socket, "run", "--gpus", "0.25", "--", "id", "-un")
                assert (done.code, done.out) == (0, f"{who.name}\n"), done
            done = await gpushare(ada, socket, "whoami", "-o", "json")
            shown = json.loads(done.out)
            assert (shown["user"], shown["tenant"], shown["unixUser"]) == (ada.name, TENANT, ada.name)
            assert "LOGIN_UNMAPPED" in (await gpushare(eve, socket, "jobs")).err
            root = Person("root", 0, folder)
            assert "LOGIN_DENIED" in (await gpushare(root, socket, "jobs")).err
            assert await audited(cluster, "LoginTokenIssued") == [("n1", ada.name), ("n1", bob.name)]
            # What one person owns, another does not touch.
            assert (await gpushare(ada, socket, "jobs", "-a")).code == 0
            done = await gpushare(bob, socket, "cancel", "1")
            assert (done.code, "PERMISSION_DENIED" in done.err or "NOT_FOUND" in done.err) == (1, True), done

    run(test)


def test_what_ends_is_renewed_and_what_is_taken_away_is_gone(folder: Path, person: Callable[..., Person]) -> None:
    ada = person()

    async def test() -> None:
        async with live_cluster(folder / "c", login_token_ttl_s=2) as cluster:
            socket = await trusted_host(cluster)
            await cluster.admin.update_tenant(f"tenants/{TENANT}", TenantSettings(unix_users=[ada.name]))
            # Longer than its token holds: what follows it asks again, and the person sees nothing of it.
            program = "for n in 1 2 3 4 5; do echo $n; sleep 1; done; exit 7"
            done = await gpushare(ada, socket, "run", "--gpus", "0.25", "--", "sh", "-c", program)
            assert (done.code, done.out) == (7, "1\n2\n3\n4\n5\n"), done
            assert "UNAUTHENTICATED" not in done.err
            issued = len(await audited(cluster, "LoginTokenIssued"))
            assert issued >= 2
            assert (await gpushare(ada, socket, "logout")).code == 0
            assert not list(ada.home.glob(".cache/gpushare/*"))
            assert (await gpushare(ada, socket, "jobs")).code == 0
            await cluster.admin.update_node("nodes/n1", trust_logins=False)
            done = await gpushare(ada, socket, "jobs")
            assert (done.code, "HOST_NOT_TRUSTED" in done.err) == (1, True), done
            denials = [event async for event in cluster.admin.list_audit_events(denials=True)]
            assert ("n1", "HOST_NOT_TRUSTED") in {(d.principal.user, d.reason) for d in denials}

    run(test)


def test_an_agent_that_comes_back_serves_again_and_one_that_shall_not_does_not(
    folder: Path, person: Callable[..., Person]
) -> None:
    ada = person()

    async def test() -> None:
        async with live_cluster(folder / "c") as cluster:
            socket = await trusted_host(cluster)
            await cluster.admin.update_tenant(f"tenants/{TENANT}", TenantSettings(unix_users=[ada.name]))
            cluster.agents["n1"].kill()
            assert socket.exists(), "nobody was there to take it away"
            assert (await gpushare(ada, socket, "jobs")).code == 1
            cluster.agents["n1"].start()
            await cluster.settled("n1")
            await until(
                lambda: cluster.agents["n1"].events("people of this host may log in here, if an admin trusts it"),
                "it listens",
            )
            assert (await gpushare(ada, socket, "jobs")).code == 0
            await cluster.add_agent("n2", "1xL40S", login_socket="")
            await cluster.ready()
            assert not (cluster.node_home("n2") / "run" / "login.sock").exists()

    run(test)
