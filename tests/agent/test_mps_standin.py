"""The stand-in for nvidia-cuda-mps-control behaves as the real program was seen to, surprise by surprise."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from standins.fake_mps import CudaProcess, FakeMps, cuda_mode, short_folder, wait_for

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as two users")


class Host:
    """A host with MPS installed, one pipe directory and at most one daemon in the foreground."""

    def __init__(self, folder: Path) -> None:
        self.mps = FakeMps.installed(folder)
        self.pipe = folder / "pipe"
        self.pipe.mkdir()
        self.pipe.chmod(0o755)
        self.log = folder / "log"
        self.log.mkdir()
        self.log.chmod(0o777)
        self.daemons: list[subprocess.Popen[bytes]] = []

    def daemon(self, *options: str, user: int | None = None, **environ: str) -> subprocess.Popen[bytes]:
        """Start `-f` and wait until it listens."""
        started = subprocess.Popen(
            [str(self.mps.bin / "nvidia-cuda-mps-control"), "-f", *options],
            env=self.mps.environ(
                CUDA_MPS_PIPE_DIRECTORY=str(self.pipe), CUDA_MPS_LOG_DIRECTORY=str(self.log), **environ
            ),
            user=user,
        )
        self.daemons.append(started)
        wait_for(lambda: not self.say("get_default_active_thread_percentage").startswith("Cannot"))
        return started

    def say(self, text: str, user: int | None = None) -> str:
        """What the control program prints for these lines."""
        return self.mps.control(self.pipe, text + "\n", user=user).stdout

    def code(self, text: str, *arguments: str) -> int:
        """Its exit code."""
        return self.mps.control(self.pipe, text + "\n", *arguments).returncode

    def limit(self, value: str, device: str = "0") -> str:
        """How a memory limit reads back after it was set to this."""
        self.say(f"set_default_device_pinned_mem_limit {device} {value}")
        return self.say("get_default_device_pinned_mem_limit 0").strip()

    def server(self) -> str:
        """The pid of a started server."""
        self.say(f"start_server -uid {os.getuid()}")
        return self.say("get_server_list").strip()

    def logged(self, name: str) -> str:
        path = self.log / name
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        for daemon in self.daemons:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(5)


@pytest.fixture
def bare() -> Iterator[Host]:
    folder = short_folder()
    host = Host(folder)
    yield host
    host.stop()
    shutil.rmtree(folder)


@pytest.fixture
def host(bare: Host) -> Host:
    bare.daemon()
    return bare


# -- values


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("2G", "2G"),
        ("900M", "0G"),
        ("20480m", "20G"),
        ("6GB", "6G"),
        ("7GiB", "7G"),
        ("1500M", "1G"),
        ("2049M", "2G"),
        ("8", "0G"),
        ("8192", "8G"),
        ("1.5G", "0G"),
        ("0.5G", "0G"),
        ("0G", "0G"),
        ("6 G", "0G"),
        ("1500K", "0G"),
        ("-1", "17179869183G"),
    ],
)
def test_sizes_are_parsed_and_read_back_as_the_real_program_does(host: Host, value: str, shown: str) -> None:
    assert host.limit("3G") == "3G"
    assert host.limit(value) == shown


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        ("8", 8 << 20),
        ("1.5G", 1 << 20),
        ("6 G", 6 << 20),
        ("900M", 900 << 20),
        ("1500M", 1500 << 20),
        ("0.5G", None),
        ("0G", None),
        ("1500K", None),
    ],
)
def test_the_servers_log_tells_the_exact_limit_that_a_size_became(host: Host, value: str, logged: int | None) -> None:
    host.say("set_default_device_pinned_mem_limit 0 " + value)
    host.server()
    line = "Device pinned memory limit for device 0 set to"
    assert (f"{line} 0x{logged:x} bytes" if logged else line) in host.logged("server.log") or logged is None
    assert (line in host.logged("server.log")) == (logged is not None)


def test_a_uuid_as_the_device_clears_the_limit_of_device_0(host: Host) -> None:
    assert host.limit("3G") == "3G"
    assert host.limit("5G", device="GPU-00000000-0000-4000-8000-000000000000") == "0G"


def test_an_ordinal_of_32_or_more_is_named_in_the_log_alone(host: Host) -> None:
    assert host.limit("3G") == "3G"
    assert host.say("set_default_device_pinned_mem_limit 32 5G") == ""
    assert host.limit("5G", device="99") == "3G"
    assert "Invalid device ordinal!" in host.logged("control.log")


def test_setting_a_limit_prints_nothing_on_success_or_failure(host: Host) -> None:
    assert host.say("set_default_device_pinned_mem_limit 0 2G") == ""
    assert host.say("set_default_device_pinned_mem_limit 0 rubbish") == ""


@pytest.mark.parametrize("value", ["0", "101", "abc", "-5"])
def test_a_bad_percentage_is_ignored_and_the_old_one_printed(host: Host, value: str) -> None:
    assert host.say("set_default_active_thread_percentage 12.5").strip() == "12.5"
    assert host.say(f"set_default_active_thread_percentage {value}").strip() == "12.5"
    assert host.code(f"set_default_active_thread_percentage {value}") == 0
    assert host.say("get_default_active_thread_percentage").strip() == "12.5"


@pytest.mark.parametrize(("value", "shown"), [("37.5", "37.5"), ("150", "100.0")])
def test_the_daemons_environment_sets_the_default_percentage(bare: Host, value: str, shown: str) -> None:
    bare.daemon(CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=value, CUDA_MPS_PINNED_DEVICE_MEM_LIMIT="0=5G")
    assert bare.say("get_default_active_thread_percentage").strip() == shown
    assert bare.say("get_default_device_pinned_mem_limit 0").strip() == "0G"  # not reported


def test_defaults_hold_for_the_next_server_only(host: Host) -> None:
    host.say("set_default_device_pinned_mem_limit 0 4G\nset_default_active_thread_percentage 30")
    server = host.server()
    host.say("set_default_device_pinned_mem_limit 0 9G\nset_default_active_thread_percentage 60")
    assert host.say(f"get_device_pinned_mem_limit {server} 0").strip() == "4G"
    assert host.say(f"get_active_thread_percentage {server}").strip() == "30.0"
    host.say(f"set_device_pinned_mem_limit {server} 0 11G")  # may be higher than the default
    assert host.say(f"get_device_pinned_mem_limit {server} 0").strip() == "11G"


def test_defaults_are_lost_at_quit(host: Host) -> None:
    host.say("set_default_active_thread_percentage 30")
    host.say("quit")
    host.daemons[0].wait(5)
    host.daemon()
    assert host.say("get_default_active_thread_percentage").strip() == "100.0"


# -- commands


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("get_server_list", ""),
        ("get_server_status", "A server PID is required"),
        ("get_server_status 4711", "Server not found"),
        ("get_client_list 4711", "Server 4711 not found"),
        ("get_client_list", "Server 0 not found"),
        ("get_device_client_list", "Server not found"),
        ("help", 'Unknown command "help"'),
        ("lspart", 'Unknown command "lspart"'),
        ("sm_partition add", 'Unknown command "sm_partition"'),
        ("device_query", 'Unknown command "device_query"'),
        ("set_default_client_priority 2", "Invalid priority value - must be 0 or 1!"),
        ("set_default_client_priority 1", ""),
        ("ps", "PID ID SERVER DEVICE NAMESPACE COMMAND"),
    ],
)
def test_answers_without_a_server_and_the_exit_code_is_0(host: Host, command: str, answer: str) -> None:
    assert host.say(command).strip() == answer
    assert host.code(command) == 0


def test_terminating_a_client_of_an_unknown_server_prints_two_lines_and_1(host: Host) -> None:
    lines = host.say("terminate_client 4711 4712").split("\n")
    assert len(lines[:-1]) == 3
    assert lines[2] == "1"
    assert host.code("terminate_client 4711 4712") == 0


def test_terminating_a_client_prints_0_and_the_client_meets_error_810(host: Host) -> None:
    server = host.server()
    client = CudaProcess(host.pipe)
    assert client.mode == "MPS"
    assert host.say(f"get_client_list {server}").split() == [str(os.getpid())]
    assert host.say(f"terminate_client {server} {os.getpid()}").strip() == "0"
    assert client.error() == "810"
    assert host.say(f"get_client_list {server}") == ""
    client.close()


def test_a_client_that_ends_leaves_the_list(host: Host) -> None:
    server = host.server()
    CudaProcess(host.pipe).close()
    wait_for(lambda: host.say(f"get_client_list {server}") == "")


def test_several_lines_in_one_session_are_answered_in_order(host: Host) -> None:
    printed = host.say("get_default_active_thread_percentage\nhelp\nget_default_device_pinned_mem_limit 0")
    assert printed.split("\n")[:3] == ["100.0", 'Unknown command "help"', "0G"]


def test_start_server_says_nothing_even_when_the_server_dies_at_once(host: Host) -> None:
    host.mps.switch(server_dies=1)
    assert host.say(f"start_server -uid {os.getuid()}") == ""
    wait_for(lambda: host.say("get_server_list") == "")


def test_clients_start_a_server_on_demand(host: Host) -> None:
    assert host.say("get_server_list") == ""
    client = CudaProcess(host.pipe)
    assert client.mode == "MPS"
    assert host.say("get_server_list").strip().isdigit()
    assert f"NEW CLIENT {os.getpid()} from user {os.getuid()}" in host.logged("control.log")
    client.close()


def test_shutdown_waits_for_clients_unless_forced(host: Host) -> None:
    server = host.server()
    client = CudaProcess(host.pipe)
    host.say(f"shutdown_server {server}")
    assert host.say("get_server_list").strip() == server
    host.say(f"shutdown_server {server} -f")
    wait_for(lambda: host.say("get_server_list") == "")
    client.close()


@pytest.mark.parametrize("version", [535, 550, 555, 580])
def test_the_version_option_is_no_probe(bare: Host, version: int) -> None:
    bare.mps.switch(version=version)
    answer = bare.mps.control(bare.pipe, "", "-v")
    assert answer.returncode == 1
    assert ("Copyright" in answer.stdout) == (version >= 555)
    assert ("Cannot find MPS control daemon process" in answer.stdout) == (version < 555)


@pytest.mark.parametrize(("version", "known"), [(535, False), (550, False), (555, True), (580, True)])
def test_multiuser_servers_exist_from_555_on(bare: Host, version: int, known: bool) -> None:
    bare.mps.switch(version=version)
    environ = bare.mps.environ(CUDA_MPS_PIPE_DIRECTORY=str(bare.pipe), CUDA_MPS_LOG_DIRECTORY=str(bare.log))
    program = str(bare.mps.bin / "nvidia-cuda-mps-control")
    started = subprocess.Popen([program, "-f", "-multiuser-server"], env=environ, stdout=subprocess.DEVNULL)
    bare.daemons.append(started)
    if known:
        wait_for(lambda: bare.say("get_default_active_thread_percentage").strip() == "100.0")
    else:
        assert started.wait(10) == 1


# -- sessions


def test_a_second_session_is_refused_or_dropped_while_one_is_open(host: Host) -> None:
    """Half of them hear "Cannot send command" and end with 1, half get nothing at all and end with 0."""
    with subprocess.Popen(
        [str(host.mps.bin / "nvidia-cuda-mps-control")],
        env=host.mps.environ(CUDA_MPS_PIPE_DIRECTORY=str(host.pipe)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as idle:
        assert idle.stdin is not None
        assert idle.stdout is not None
        idle.stdin.write("get_default_active_thread_percentage\n")
        idle.stdin.flush()
        assert idle.stdout.readline().strip() == "100.0"
        answers = [host.mps.control(host.pipe, "get_default_active_thread_percentage\n") for _ in range(4)]
        assert [(one.returncode, one.stdout.strip()) for one in answers] == [
            (1, "Cannot send command to MPS control daemon process"),
            (0, ""),
        ] * 2
        # Not even quit gets through, but CUDA programs do.
        assert host.say("quit") != "0"
        client = CudaProcess(host.pipe)
        assert client.mode == "MPS"
        client.close()
        idle.stdin.close()
    assert host.say("get_default_active_thread_percentage").strip() == "100.0"
    assert host.daemons[0].poll() is None


def test_without_a_daemon_the_client_ends_with_1(bare: Host) -> None:
    answer = bare.mps.control(bare.pipe, "get_server_list\n")
    assert (answer.returncode, answer.stdout.strip()) == (1, "Cannot find MPS control daemon process")


# -- files and processes


def test_files_have_modes_of_their_own_and_only_the_privileged_socket_follows_the_umask(bare: Host) -> None:
    old = os.umask(0o077)
    try:
        bare.daemon()
    finally:
        os.umask(old)
    modes = {path.name: stat.filemode(path.stat().st_mode) for path in bare.pipe.iterdir()}
    assert modes == {
        "control": "srw-rw-rw-",
        "control_lock": "-rw-rw-rw-",
        "control_privileged": "srwx------",
        "log": "prwxrwxrwx",
        "nvidia-cuda-mps-control.pid": "-rw-rw-rw-",
    }
    assert (bare.pipe / "nvidia-cuda-mps-control.pid").read_text() == str(bare.daemons[0].pid)


def test_quit_returns_before_the_daemon_is_gone_and_leaves_its_files(host: Host) -> None:
    assert host.say("quit") == ""
    again = host.mps.control(host.pipe, "", "-d")
    assert (again.returncode, again.stdout.strip()) == (1, "An instance of this daemon is already running")
    host.daemons[0].wait(5)
    assert {"control", "control_lock", "control_privileged"} <= {path.name for path in host.pipe.iterdir()}
    assert host.mps.control(host.pipe, "", "-d").returncode == 0
    assert host.say("get_default_active_thread_percentage").strip() == "100.0"
    host.say("quit")
    wait_for(lambda: "Cannot find" in host.say("get_server_list"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_daemon_and_a_new_one_starts_on_its_files(host: Host, signum: signal.Signals) -> None:
    host.daemons[0].send_signal(signum)
    host.daemons[0].wait(5)
    assert (host.pipe / "control").exists()
    assert "Cannot find" in host.say("get_server_list")
    host.daemon()
    assert host.say("get_default_active_thread_percentage").strip() == "100.0"


def test_with_the_control_socket_removed_root_is_served_and_programs_run_without_mps(host: Host) -> None:
    (host.pipe / "control").unlink()
    if os.geteuid() == 0:
        assert host.say("get_default_active_thread_percentage").strip() == "100.0"
    again = host.mps.control(host.pipe, "", "-d")
    assert (again.returncode, again.stdout.strip()) == (1, "An instance of this daemon is already running")
    assert cuda_mode(host.pipe) == "no MPS"


@pytest.mark.parametrize(("length", "works"), [(87, True), (88, False), (100, False)])
def test_the_pipe_directorys_path_has_at_most_87_characters(bare: Host, length: int, works: bool) -> None:
    pipe = bare.pipe / ("x" * (length - len(str(bare.pipe)) - 1))
    pipe.mkdir()
    assert len(str(pipe)) == length
    answer = bare.mps.control(pipe, "", "-d")
    assert answer.returncode == (0 if works else 1)
    assert answer.stdout == ""
    if works:
        bare.mps.control(pipe, "quit\n")
        wait_for(lambda: "Cannot find" in bare.mps.control(pipe, "get_server_list\n").stdout)


def test_the_pipe_directory_must_exist(bare: Host) -> None:
    answer = bare.mps.control(bare.pipe / "none", "", "-d")
    assert answer.returncode == 1
    assert "Cannot access CUDA_MPS_PIPE_DIRECTORY=" in answer.stdout


def test_a_missing_log_directory_is_a_warning_only(bare: Host) -> None:
    shutil.rmtree(bare.log)
    bare.daemon()
    assert bare.say("get_default_active_thread_percentage").strip() == "100.0"


@needs_root
def test_only_owner_and_root_change_settings_and_quit_but_everybody_may_look(host: Host) -> None:
    assert host.limit("3G") == "3G"
    host.say("set_default_device_pinned_mem_limit 0 9G", user=NOBODY)
    assert host.say("get_default_device_pinned_mem_limit 0", user=NOBODY).strip() == "3G"
    assert host.say("set_default_active_thread_percentage 5", user=NOBODY).strip() == "100.0"
    assert host.say("quit", user=NOBODY).strip() == "Not enough privilege to execute quit command"
    answer = host.mps.control(host.pipe, "quit\n", user=NOBODY)
    assert answer.returncode == 0
    assert host.daemons[0].poll() is None


@needs_root
def test_any_user_may_start_a_server_for_himself_on_roots_daemon(host: Host) -> None:
    host.say(f"start_server -uid {NOBODY}", user=NOBODY)
    server = host.say("get_server_list").strip()
    wait_for(lambda: f"Uid:\t{NOBODY}" in Path(f"/proc/{server}/status").read_text())
    host.say("start_server -uid 0", user=NOBODY)
    assert host.say("get_server_list").strip() == server
    # And anybody may shut down only his own.
    host.say("start_server -uid 0")
    both = host.say("get_server_list").split()
    host.say("\n".join(f"shutdown_server {pid}" for pid in both), user=NOBODY)
    wait_for(lambda: host.say("get_server_list").split() == [pid for pid in both if pid != server])


@needs_root
def test_a_daemon_that_is_not_roots_serves_its_own_user_only(bare: Host) -> None:
    bare.pipe.chmod(0o777)
    os.chown(bare.pipe, NOBODY, NOBODY)
    bare.daemon(user=NOBODY)
    client = CudaProcess(bare.pipe)
    assert client.mode == "805"
    assert "Failed to start server using uid 0, error: Operation not permitted" in bare.logged("control.log")
    client.close()


@needs_root
def test_a_tenant_can_overwrite_the_pid_file(host: Host) -> None:
    pid_file = host.pipe / "nvidia-cuda-mps-control.pid"
    subprocess.run(["/bin/sh", "-c", f"echo 1 > {pid_file}"], user=NOBODY, check=True, timeout=10)
    assert pid_file.read_text().strip() == "1"


def test_a_multiuser_daemon_calls_every_client_a_client_of_user_0(bare: Host) -> None:
    bare.daemon("-multiuser-server")
    client = CudaProcess(bare.pipe)
    assert f"NEW CLIENT {os.getpid()} from user 0" in bare.logged("control.log")
    client.close()


# -- the switches for faults


def test_the_switches_for_faults_work(host: Host) -> None:
    host.mps.switch(drop=2)
    said = [host.say("get_default_active_thread_percentage").strip() for _ in range(3)]
    assert said == ["", "", "100.0"]
    host.mps.switch(drop=None, misparse_mib=1)
    assert host.limit("12288M") == "0G"
    host.mps.switch(misparse_mib=None, server_slow_s=60)
    server = host.server()
    assert host.say(f"get_server_status {server}").strip() == "INITIALIZING"
    host.mps.switch(server_slow_s=None, server_status="FAULT")
    assert host.say(f"get_server_status {server}").strip() == "FAULT"
    host.mps.switch(server_status=None, control_deaf=1)
    wait_for(lambda: cuda_mode(host.pipe) == "no MPS")
    assert (host.pipe / "control").exists()
