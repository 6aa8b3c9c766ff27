"""A directory for each attempt: whose it is, what is refused, and a removal that nothing in it can lead astray."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpushare.reasons import Reason
from gpushare_agent import treeremoval, unixuser
from gpushare_agent.launchspec import LaunchRefused, UnixUser
from gpushare_agent.scratch import ScratchSpace, ScratchUnusable

SOMEBODY = UnixUser(54_321, 54_322, (54_322,), "somebody", "/", "/bin/sh")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories to others")


def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where every user may pass."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o711)
    return tmp_path / "scratch"


@pytest.fixture
def space(place: Path) -> Iterator[ScratchSpace]:
    found = ScratchSpace(place, lambda path: None)
    found.open()
    yield found
    found.close()


class TestSpace:
    @root_only
    def test_it_is_the_users_alone(self, space: ScratchSpace) -> None:
        space.make("v.1.0.1", SOMEBODY)
        found = space.path("v.1.0.1").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (54_321, 54_322, 0o700)

    def test_it_goes_with_all_that_is_in_it(self, space: ScratchSpace) -> None:
        space.make("v.1.0.1", unixuser.current())
        (space.path("v.1.0.1") / "a" / "b").mkdir(parents=True)
        (space.path("v.1.0.1") / "a" / "b" / "file").write_text("x")
        space.drop("v.1.0.1")
        space.drop("v.1.0.1")
        until(lambda: not space.path("v.1.0.1").exists())

    def test_a_start_removes_what_no_live_attempt_has(self, space: ScratchSpace) -> None:
        for name in ("v.1.0.1", "v.2.0.1"):
            space.make(name, unixuser.current())
            (space.path(name) / "kept").touch()
        space.sweep({"v.2.0.1"})
        until(lambda: not space.path("v.1.0.1").exists())
        assert (space.path("v.2.0.1") / "kept").exists()

    def test_two_agents_do_not_share_one(self, space: ScratchSpace, place: Path) -> None:
        with pytest.raises(ScratchUnusable, match="another agent"):
            ScratchSpace(place, lambda path: None).open()

    def test_one_that_others_may_write_to_or_that_is_a_link_is_refused(self, place: Path) -> None:
        place.mkdir()
        place.chmod(0o1777)
        with pytest.raises(ScratchUnusable, match="nobody else"):
            ScratchSpace(place, lambda path: None).open()
        link = place.with_name("link")
        link.symlink_to(place)
        with pytest.raises(ScratchUnusable):
            ScratchSpace(link, lambda path: None).open()

    @root_only
    def test_a_user_who_cannot_get_there_is_told_where_the_way_is_barred(self, tmp_path: Path) -> None:
        barred = tmp_path / "barred"
        barred.mkdir(mode=0o700)
        space = ScratchSpace(barred / "scratch", lambda path: None)
        space.open()
        with pytest.raises(LaunchRefused) as caught:
            space.make("v.1.0.1", SOMEBODY)
        assert caught.value.reason is Reason.LAUNCH_DENIED
        assert "chmod 0711" in caught.value.detail
        # The agent's own jobs get where it gets.
        os.chown(barred, 54_321, 54_321)
        space.make("v.2.0.1", unixuser.current())
        assert space.path("v.2.0.1").is_dir()
        space.close()

    def test_one_that_cannot_be_removed_is_complained_of(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        space = ScratchSpace(place, said.append)
        space.open()
        space.make("v.1.0.1", unixuser.current())
        (place / "v.1.0.1" / "left").touch()
        monkeypatch.setattr(treeremoval, "_take_over", _refuse)
        space.drop("v.1.0.1")
        until(lambda: said == [str(place / "v.1.0.1")])
        space.close()


def _refuse(directory: int, name: str) -> int:
    raise PermissionError(name)


class TestRemoval:
    @pytest.fixture
    def victim(self, tmp_path: Path) -> Path:
        """What must outlive every removal."""
        victim = tmp_path / "victim"
        victim.mkdir()
        (victim / "precious").write_text("x")
        return victim

    def test_links_go_and_what_they_name_stays(self, tmp_path: Path, victim: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "in").mkdir(parents=True)
        (tree / "dir").symlink_to(victim)
        (tree / "in" / "file").symlink_to(victim / "precious")
        (tree / "in" / "up").symlink_to("../..")
        os.link(victim / "precious", tree / "hard")
        os.mkfifo(tree / "fifo")
        assert treeremoval.remove(tree)
        assert not tree.exists()
        assert (victim / "precious").read_text() == "x"

    def test_a_link_in_place_of_the_directory_goes_itself(self, tmp_path: Path, victim: Path) -> None:
        tree = tmp_path / "tree"
        tree.symlink_to(victim)
        assert treeremoval.remove(tree)
        assert (victim / "precious").exists()

    def test_what_is_not_there_is_removed(self, tmp_path: Path) -> None:
        assert treeremoval.remove(tmp_path / "nothing")
        assert treeremoval.remove(tmp_path / "no" / "such" / "place")

    def test_directories_that_nobody_may_enter(self, tmp_path: Path) -> None:
        (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
        (tmp_path / "tree" / "a" / "b" / "f").touch()
        for path in ("tree/a/b", "tree/a", "tree"):
            (tmp_path / path).chmod(0)
        assert treeremoval.remove(tmp_path / "tree")

    def test_deeper_than_any_path_stack_or_table_of_descriptors(self, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        here = os.open(tree, os.O_RDONLY)
        for _ in range(1500):
            os.mkdir("deeper", dir_fd=here)
            below = os.open("deeper", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        assert treeremoval.remove(tree)
        assert not tree.exists()

    @root_only
    def test_an_agent_without_the_power_to_pass_over_modes(self, tmp_path: Path) -> None:
        """As where the kernel or the file server treats root like anybody else."""
        tree = tmp_path / "tree"
        (tree / "a" / "b").mkdir(parents=True)
        (tree / "a" / "b" / "f").touch()
        for path in (tree / "a" / "b" / "f", tree / "a" / "b", tree / "a", tree):
            os.chown(path, 54_321, 54_321)
            path.chmod(0o700)
        program = "import sys; from pathlib import Path; from gpushare_agent import treeremoval as t;"
        program += "sys.exit(0 if t.remove(Path(sys.argv[1])) else 1)"
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", program]
        done = subprocess.run([*command, str(tree)], timeout=30, check=False)
        assert done.returncode == 0
        assert not tree.exists()

    @root_only
    def test_a_racer_that_swaps_directories_for_links_leads_it_nowhere(self, place: Path, victim: Path) -> None:
        """The owner of the tree, from outside of its job."""
        place.mkdir()
        program = f"""
import os
os.setresgid(54321, 54321, 54321), os.setresuid(54321, 54321, 54321)
number = 0
while True:
    number += 1
    for name in ("a", "b"):
        path = f"{place}/tree/{{name}}"
        try:
            os.mkdir(path)
            os.mkdir(path + "/x")
            os.rename(path, f"{{path}}-{{number}}")
            os.symlink("{victim}", path)
            os.rename(path, f"{{path}}-{{number}}-link")
        except OSError:
            pass
"""
        racer = subprocess.Popen([sys.executable, "-c", program])
        try:
            for _ in range(60):
                (place / "tree").mkdir(mode=0o700)
                os.chown(place / "tree", 54_321, 54_321)
                until(lambda: len(os.listdir(place / "tree")) > 4)
                # A first try may meet what came in while it looked; from then on nothing more can.
                until(lambda: treeremoval.remove(place / "tree"))
        finally:
            racer.kill()
            racer.wait()
        assert os.listdir(victim) == ["precious"]
        assert (victim / "precious").read_text() == "x"
