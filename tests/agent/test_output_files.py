"""Files that a job names for its output: opened as its user, after everything else that is the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from executor_kit import BOTH_KINDS, NOBODY, host, needs_root, open_directory, run, shell, spec

from gpushare.reasons import Reason

BOTH_STREAMS = "echo out; echo err >&2"


@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_both_streams_are_appended_to_a_file_in_the_working_directory(tmp_path: Path, weak: bool) -> None:
    (tmp_path / "1.out").write_text("before\n")

    async def body() -> None:
        async with host(tmp_path / "state", weak=weak) as here:
            found = await here.result(shell("t.1.0.1", BOTH_STREAMS, cwd=str(tmp_path), output_path="1.out"))
            assert found.reason == Reason.COMPLETED, found
            assert (tmp_path / "1.out").read_text() == "before\nout\nerr\n"
            assert (here.stdout("t.1.0.1"), here.stderr("t.1.0.1")) == ("", "")

    run(body())


# name -> (output_path, error_path, files that hold something then, the kept stdout, the kept stderr)
STREAMS = {
    "each its own": ("o", "e", {"o": "out\n", "e": "err\n"}, "", ""),
    "one file named twice": ("o", "o", {"o": "out\nerr\n"}, "", ""),
    "errors alone": ("", "e", {"e": "err\n"}, "out\n", ""),
    "nowhere": ("/dev/null", "", {}, "", ""),
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_goes_where_it_was_sent(tmp_path: Path, case: str) -> None:
    output, error, files, stdout, stderr = STREAMS[case]
    work = tmp_path / "work"
    work.mkdir()

    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            launch = shell("t.1.0.1", BOTH_STREAMS, cwd=str(work), output_path=output, error_path=error)
            assert (await here.result(launch)).reason == Reason.COMPLETED
            assert {path.name: path.read_text() for path in work.iterdir()} == files
            assert (here.stdout("t.1.0.1"), here.stderr("t.1.0.1")) == (stdout, stderr)

    run(body())


def test_a_program_finds_no_other_descriptor_than_its_three(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            launch = shell("t.1.0.1", "ls /proc/$$/fd", cwd=str(tmp_path), output_path="o", error_path="e")
            await here.result(launch)
            assert set((tmp_path / "o").read_text().split()) <= {"0", "1", "2", "10"}, "10 is the shell's own"
            assert (tmp_path / "o").stat().st_mode & 0o777 == 0o644

    run(body())


# What is in the way -> (the path, words of the detail). `T` stands for a directory of the test.
IN_THE_WAY = {
    "a directory that is not there": ("T/no/such/o", ("ENOENT", "its directory is not there")),
    "a directory of that name": ("T", ("EISDIR",)),
    "a file on the way": ("/etc/passwd/o", ("ENOTDIR",)),
    "a pipe that nobody reads": ("T/pipe", ("ENXIO",)),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_a_file_that_cannot_be_opened_ends_the_attempt_before_its_program(tmp_path: Path, case: str) -> None:
    path, words = IN_THE_WAY[case]
    path = path.replace("T", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")

    async def body() -> None:
        async with host(tmp_path / "state", weak=True) as here:
            witness = tmp_path / "ran"
            found = await here.result(spec("t.1.0.1", "touch", str(witness), output_path=path))
            assert (found.state, found.reason, found.exit_code) == ("FAILED", Reason.EXEC, 126)
            assert path in found.detail
            for word in words:
                assert word in found.detail
            assert not witness.exists()

    run(body())


@needs_root
@pytest.mark.parametrize("weak", BOTH_KINDS)
def test_a_file_is_opened_as_the_user_and_never_as_root(weak: bool) -> None:
    async def body(state: Path) -> None:
        theirs = state / "theirs"
        theirs.mkdir()
        os.chown(theirs, NOBODY.uid, NOBODY.gid)
        # a link of the user's own is followed with the user's rights, not with root's
        (theirs / "link").symlink_to("/etc/passwd")
        before = Path("/etc/passwd").read_bytes()
        async with host(state / "agent", weak=weak, run_as_self=False) as here:
            for number, path in enumerate(("/etc/passwd", "link", "/root-made-this", "../beside"), start=1):
                launch = shell(f"t.{number}.0.1", BOTH_STREAMS, user=NOBODY, cwd=str(theirs), output_path=path)
                found = await here.result(launch)
                assert (found.state, found.reason) == ("FAILED", Reason.EXEC), path
                assert path in found.detail
                assert "Permission denied (EACCES)" in found.detail
            assert Path("/etc/passwd").read_bytes() == before
            assert not Path("/root-made-this").exists()
            mine = shell("t.9.0.1", BOTH_STREAMS, user=NOBODY, cwd=str(theirs), output_path="9.out")
            assert (await here.result(mine)).reason == Reason.COMPLETED
            made = (theirs / "9.out").stat()
            assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (NOBODY.uid, NOBODY.gid, 0o644)

    with open_directory() as state:
        run(body(state))
