"""Whether a job's user can reach a socket is judged as the kernel judges it, before CUDA would silently give up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins.fake_mps import INTERPRETER, short_folder

from gpushare_agent.sharing.access import admit, fingerprint, why_deaf, why_unreachable

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as several users")
ALICE, BOB, STAFF = 65001, 65002, 65100
CONNECT = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
    "sys.exit(1 if s.connect_ex(sys.argv[1]) else 0)\n"
)


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = short_folder()
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def target(folder: Path) -> Iterator[Path]:
    """A socket that listens in a directory of its own."""
    (folder / "pipe").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "pipe" / "control"))
        listener.listen(64)
        (folder / "pipe" / "control").chmod(0o666)
        yield folder / "pipe" / "control"


def connects(target: Path, uid: int, gids: list[int]) -> bool:
    """What the kernel says."""
    program = [INTERPRETER, "-SEc", CONNECT, str(target)]
    done = subprocess.run(program, user=uid, group=uid, extra_groups=gids, timeout=10, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("mode", [0o700, 0o710, 0o701, 0o050])
@pytest.mark.parametrize("owner", [(0, STAFF), (ALICE, 0)])
def test_the_verdict_on_a_directory_is_the_kernels(target: Path, mode: int, owner: tuple[int, int]) -> None:
    os.chown(target.parent, *owner)
    target.parent.chmod(mode)
    for uid, gids in ((ALICE, []), (ALICE, [STAFF]), (BOB, [STAFF])):
        assert (why_unreachable(target, uid, gids) == "") == connects(target, uid, gids)
    assert why_unreachable(target, 0, []) == ""


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o606, 0o444])
def test_the_verdict_on_the_socket_is_the_kernels(target: Path, mode: int) -> None:
    os.chown(target, ALICE, STAFF)
    target.chmod(mode)
    for uid, gids in ((ALICE, []), (BOB, [STAFF]), (BOB, [])):
        assert (why_unreachable(target, uid, gids) == "") == connects(target, uid, gids)


@pytest.mark.parametrize("admitted", [(), (ALICE,), (ALICE, BOB)])
def test_those_who_are_admitted_get_through_and_nobody_else(target: Path, admitted: tuple[int, ...]) -> None:
    exact = admit(target.parent, admitted)
    for uid in (ALICE, BOB):
        expected = uid in admitted or not exact
        assert connects(target, uid, []) == expected
        assert (why_unreachable(target, uid, []) == "") == expected


def test_admission_is_taken_back(target: Path) -> None:
    admit(target.parent, [ALICE])
    assert admit(target.parent, [])
    assert not connects(target, ALICE, [])


def test_a_mode_set_by_somebody_else_shows_in_the_fingerprint_and_in_the_verdict(target: Path) -> None:
    if not admit(target.parent, [ALICE]):
        pytest.skip("this file system has no access lists")
    before = fingerprint(target.parent)
    target.parent.chmod(0o700)  # cuts the mask of the access list
    assert fingerprint(target.parent) != before
    assert not connects(target, ALICE, [])
    assert "does not let user" in why_unreachable(target, ALICE, [])
    admit(target.parent, [ALICE])
    assert fingerprint(target.parent) == before


def test_a_parent_that_keeps_the_user_out_is_named(target: Path, folder: Path) -> None:
    folder.chmod(0o750)
    cause = why_unreachable(target, ALICE, [])
    assert str(folder) in cause
    assert "0750" in cause
    assert not connects(target, ALICE, [])


def test_a_link_on_the_way_is_followed(target: Path, folder: Path) -> None:
    link = folder / "link"
    link.symlink_to(target.parent)
    target.parent.chmod(0o700)
    assert why_unreachable(link / "control", ALICE, [])
    target.parent.chmod(0o711)
    assert why_unreachable(link / "control", ALICE, []) == ""


def test_what_is_missing_is_named(folder: Path) -> None:
    assert "cannot be looked at" in why_unreachable(folder / "none" / "control", ALICE, [])


def test_whether_somebody_listens(target: Path, folder: Path) -> None:
    assert why_deaf(target) == ""
    assert "nobody accepts connections" in why_deaf(folder / "none")
    dead = folder / "dead"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(dead))
        listener.listen(1)
        assert why_deaf(dead) == ""
    assert "Connection refused" in why_deaf(dead)
    plain = folder / "plain"
    plain.write_text("")
    assert why_deaf(plain)


def test_a_full_queue_is_no_reason_to_wait(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "full"))
        listener.listen(0)
        causes = [why_deaf(folder / "full") for _ in range(5)]
    assert any("unavailable" in cause for cause in causes)
