"""The launcher's process stays small and its own JSON is JSON: what it may import, and what that costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from executor_kit import host, run, spec
from hypothesis import given
from hypothesis import strategies as st

import gpushare_agent
from gpushare.reasons import Reason
from gpushare_agent import attemptend, failpoints, shim, tinyjson

PACKAGE_ROOT = str(Path(gpushare_agent.__file__).parent.parent)
# generous: measured 1.8 MiB of private memory for the launcher and 1.4 MiB for a shim
MAX_PRIVATE_KIB = 6 * 1024

scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.text())


@given(record=st.dictionaries(st.text(), scalars))
def test_small_json_is_json(record: dict[str, str | int | bool | None]) -> None:
    written = tinyjson.dumps(record)
    assert json.loads(written) == record
    assert tinyjson.loads(written) == record


@given(value=st.dictionaries(st.text(), st.recursive(scalars, lambda inner: st.lists(inner), max_leaves=5)))
def test_small_json_reads_what_json_writes(value: dict[str, object]) -> None:
    assert tinyjson.loads(json.dumps(value).encode()) == value
    assert tinyjson.loads(json.dumps(value, ensure_ascii=False, indent=1).encode()) == value


@given(data=st.one_of(st.binary(), st.text(alphabet='{}[]",:0 a\\u').map(str.encode)))
def test_small_json_refuses_the_rest_as_json_does(data: bytes) -> None:
    try:
        expected = json.loads(data)
    except ValueError:
        expected = None
    if isinstance(expected, dict) and data[:1] == b"{":
        assert tinyjson.loads(data) == expected
    else:
        with pytest.raises(ValueError, match="not "):
            tinyjson.loads(data)


def test_the_launcher_loads_next_to_nothing() -> None:
    code = (
        f"import sys; sys.path.insert(0, {PACKAGE_ROOT!r}); import gpushare_agent.launcher; "
        "print(' '.join(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    heavy = {
        "asyncio",
        "grpc",
        "json",
        "logging",
        "msgspec",
        "pathlib",
        "re",
        "enum",
        "socket",
        "subprocess",
        "gpushare",
    }
    assert not loaded & heavy
    own = {name for name in loaded if name.startswith("gpushare_agent.")}
    assert own >= {"gpushare_agent.shim", "gpushare_agent.task"}
    assert len(loaded) < 70


def private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Private_Clean:")))


def test_launcher_and_shims_are_small(tmp_path: Path) -> None:
    async def body() -> None:
        async with host(tmp_path, weak=True) as here:
            for number in range(3):
                await here.executor.launch(spec(f"t.{number}.0.1", "sleep", "600"))
            assert private_kib(here.executor.launcher_pid) < MAX_PRIVATE_KIB
            assert private_kib(here.shim_pid("t.0.0.1")) < MAX_PRIVATE_KIB

    run(body())


def test_a_shim_loads_nothing_after_its_start(tmp_path: Path) -> None:
    """An upgrade may replace the files under it: here they are not even there any more."""
    import shutil

    copy = tmp_path / "agent"
    shutil.copytree(Path(PACKAGE_ROOT) / "gpushare_agent", copy / "gpushare_agent")
    driver = f"""
import os, shutil, socket, subprocess, sys, time
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
lease = os.open({str(tmp_path / "lease")!r}, os.O_RDWR | os.O_CREAT)
sys.path.insert(0, {str(copy)!r}); sys.path.insert(1, {str(Path(PACKAGE_ROOT).parent)!r})
from gpushare_agent.executor import Executor, ExecutorConfig, LaunchSpec
from pathlib import Path
import asyncio
async def main():
    config = ExecutorConfig(Path({str(tmp_path / "state")!r}), "copy", weak=True, run_as_self=True)
    ex = Executor(config, lambda s: None)
    ex.start_launcher(); await ex.recover()
    spec = dict(env={{"PATH": "/usr/bin:/bin"}}, cwd="/", log_cap_bytes=4096)
    await ex.launch(LaunchSpec(attempt_id="t.1.0.1", argv=("true",), **spec))
    shutil.rmtree({str(copy)!r})
    await ex.launch(LaunchSpec(attempt_id="t.2.0.1", argv=("sh", "-c", "echo x; sleep 0.2; exit 3"), **spec))
    await ex.launch(LaunchSpec(attempt_id="t.3.0.1", argv=("nothing-there",), **spec))
    await ex.launch(LaunchSpec(attempt_id="t.4.0.1", argv=("sleep", "60"), run_limit_ms=100, grace_ms=0, **spec))
    while not all(s.final for s in ex.statuses().values()):
        await asyncio.sleep(0.01)
    print(*[s.reason.value for _, s in sorted(ex.statuses().items())])
    await ex.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["COMPLETED", "EXIT_CODE", "EXEC", "TIME_LIMIT"], done.stderr
    assert (tmp_path / "state/launcher.log").read_text() == ""


def test_the_shims_words_are_reasons() -> None:
    words = {"INFRA", "STALE_ATTEMPT", "LEASE_EXPIRED", "TIME_LIMIT", "COMPLETED", "HOST_MEMORY_LIMIT"}
    words |= {"SIGNALLED", "EXIT_CODE", *attemptend._REASON_OF_STAGE.values()}
    for word in words:
        assert Reason(word) == word
    for module in (shim, attemptend):
        source = Path(str(module.__file__)).read_text()
        assert all(f'"{word}"' in source or word in attemptend._REASON_OF_STAGE.values() for word in words) or source


def test_failpoints_do_nothing_unless_armed() -> None:
    for name in failpoints.NAMES:
        failpoints.failpoint(name)
