"""A stand-in for `nvidia-cuda-mps-control`: the daemon (-d, -f), standard library alone; `client.c` is its client.

It imitates how the real program behaves where that surprises: 0 as the exit code of almost every error, one command
session at a time, dropped sessions, sizes parsed in its own way, limits read back in whole GiB, a UUID taken for device
0, `quit` that returns before the daemon is gone. The wire between its client and its daemon is its own. Faults are
switched on in the file that FAKE_MPS_STATE names, one `KEY VALUE` a line, `KEY@UUID` for one card's daemon:

    version 580             which release to imitate (535, 550, 555, 580)
    silent 1                sessions are accepted and never answered
    drop N                  the next N sessions are dropped without a word (counted from the line's change)
    misparse_mib N          whatever size is set, N MiB is stored
    control_deaf 1          nobody listens on `control` any more; `control_privileged` still works
    deaf 1                  nobody listens on either
    server_dies 1           a started server ends at once
    server_slow_s S         a server is INITIALIZING for that long
    server_status TEXT      what get_server_status says instead
    server_log_mib N        the server logs this limit instead of the one it has
    server_silent_log 1     the server logs nothing
    terminate_fails 1       terminate_client never succeeds
    ignore_server_limit 1   set_device_pinned_mem_limit is forgotten
    no_quit 1               quit is answered and ignored
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import sys
import time

BANNER = "Copyright (c) 2024 NVIDIA Corporation (stand-in)\nusage: nvidia-cuda-mps-control [-d | -f]\n"
MIB = 1 << 20
MAX_PIPE_PATH = 87
ONE_DEVICE = "0"


def settings(uuid):
    """The switches that hold for this daemon, read anew each time."""
    found = {}
    try:
        with open(os.environ["FAKE_MPS_STATE"]) as lines:
            for line in lines:
                key, _, value = line.strip().partition(" ")
                name, _, only = key.partition("@")
                if name and (not only or only == uuid):
                    found[name] = value
    except (KeyError, OSError):
        pass
    return found


def release(found):
    return int(found.get("version", "580"))


def pipe_directory():
    return os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")


def parse_size(text):
    """Bytes of a memory limit as the real program reads them; None takes the limit away."""
    digits = text[1:] if text[:1] == "-" else text
    number, rest = "", digits
    while rest[:1].isdigit():
        number, rest = number + rest[0], rest[1:]
    if text.startswith("-"):
        return (1 << 64) - 1
    value = int(number or "0")
    unit = rest[:1].lower()
    if unit == "k":
        return None
    return value * ((1 << 30) if unit == "g" else MIB) or None


def shown_size(limit):
    """A limit as `get` prints it: whole GiB, truncated."""
    return f"{(limit or 0) >> 30}G"


def parse_percentage(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value <= 100 else None


class Server:
    """One MPS server: a real process that does nothing, under the right user."""

    def __init__(self, daemon, uid):
        found = daemon.settings()
        self.uid = 0 if daemon.multiuser else uid
        self.limit = daemon.limit
        self.percentage = daemon.percentage
        self.clients = {}
        self.ready_at = time.monotonic() + float(found.get("server_slow_s", "0"))
        self.pid = os.fork()
        if self.pid == 0:
            serve_nothing(self.uid, daemon.pid, dies="server_dies" in found)
        daemon.control_log(f"Starting new server {self.pid} for user {self.uid}")
        if "server_silent_log" not in found:
            logged = int(found["server_log_mib"]) * MIB if "server_log_mib" in found else self.limit
            daemon.server_log("CUDA MPS Server for Linux/Unix. Binary version: 13000")
            daemon.server_log(f"Active Threads Percentage set to {self.percentage:.1f}")
            if logged:
                daemon.server_log(f"Device pinned memory limit for device 0 set to 0x{logged:x} bytes")

    def alive(self):
        try:
            return os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        except ChildProcessError:
            return False

    def status(self, found):
        if "server_status" in found:
            return found["server_status"]
        return "ACTIVE" if time.monotonic() >= self.ready_at else "INITIALIZING"

    def stop(self):
        for client in self.clients.values():
            client.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def serve_nothing(uid, daemon_pid, dies):
    """The server's process after the fork."""
    if dies:
        os._exit(1)
    if os.getuid() == 0 and uid != 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    # After setuid, which forgets it: the server ends with its daemon.
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != daemon_pid:
        os._exit(1)
    os.closerange(0, 1024)
    os.open("/dev/null", os.O_RDWR)
    os.execv("/bin/sleep", ["nvidia-cuda-mps-server", "1000000"])


class Session:
    def __init__(self, connection, uid):
        self.connection = connection
        self.uid = uid


class Daemon:
    def __init__(self, directory, multiuser):
        self.pid = os.getpid()
        self.directory = directory
        self.multiuser = multiuser
        self.uuid = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self.limit = None
        self.percentage = parse_percentage(os.environ.get("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "100")) or 100.0
        self.servers = {}
        self.session = None
        self.waiting = {}
        self.refusals = 0
        self.dropped = ("", 0)
        self.ends_at = None
        self.stopping = False
        self.listening = []
        self.open_files()

    # -- files

    def settings(self):
        return settings(self.uuid)

    def path(self, name):
        return os.path.join(self.directory, name)

    def listen(self, name, mode):
        path = self.path(name)
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        if mode is not None:
            os.chmod(path, mode)
        listener.listen(128)
        self.listening.append((name, listener))

    def open_files(self):
        """The modes do not follow the umask, except for the privileged socket's."""
        pid_file = self.path("nvidia-cuda-mps-control.pid")
        with open(pid_file, "w") as file:
            file.write(str(os.getpid()))
        os.chmod(pid_file, 0o666)  # noqa: S103 - as the real one
        if not os.path.exists(self.path("log")):
            os.mkfifo(self.path("log"))
        os.chmod(self.path("log"), 0o777)  # noqa: S103 - as the real one
        self.listen("control", 0o666)
        self.listen("control_privileged", None)

    def log(self, name, text):
        folder = os.environ.get("CUDA_MPS_LOG_DIRECTORY", "/var/log/nvidia-mps")
        try:
            with open(os.path.join(folder, name), "a") as file:
                file.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}.000 Control {os.getpid()}] {text}\n")
        except OSError:
            pass

    def control_log(self, text):
        self.log("control.log", text)

    def server_log(self, text):
        self.log("server.log", text)

    # -- the loop

    def run(self):
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        while not self.stopping and (self.ends_at is None or time.monotonic() < self.ends_at):
            self.turn()
        for server in self.servers.values():
            server.stop()

    def stop(self, *_):
        self.stopping = True

    def turn(self):
        self.grow_deaf()
        self.servers = {pid: server for pid, server in self.servers.items() if server.alive()}
        watched = [listener for _, listener in self.listening] + list(self.waiting)
        if self.session:
            watched.append(self.session.connection)
        clients = {c: s for s in self.servers.values() for c in s.clients.values()}
        ready, _, _ = select.select(watched + list(clients), [], [], 0.03)
        for item in ready:
            if item in clients:
                self.lose_client(clients[item], item)
            elif self.session and item is self.session.connection:
                self.serve()
            elif item in self.waiting:
                self.greet(item, self.waiting.pop(item))
            else:
                connection, _ = item.accept()
                self.waiting[connection] = peer_of(connection)

    def grow_deaf(self):
        found = self.settings()
        for name, listener in list(self.listening):
            if "deaf" in found or ("control_deaf" in found and name == "control"):
                listener.close()
                self.listening.remove((name, listener))

    def greet(self, connection, peer):
        """The first message tells a command session from a CUDA process."""
        hello = receive(connection)
        if hello == b"SESSION":
            self.open_session(connection, peer)
        elif hello == b"CLIENT":
            self.admit_client(connection, peer)
        else:
            connection.close()

    def open_session(self, connection, peer):
        found = self.settings()
        if found.get("drop", "0") != self.dropped[0]:
            self.dropped = (found.get("drop", "0"), int(found.get("drop", "0")))
        if self.dropped[1] > 0:
            self.dropped = (self.dropped[0], self.dropped[1] - 1)
            connection.close()
        elif self.session:
            # Half of those that come second are told, the other half get nothing at all.
            self.refusals += 1
            if self.refusals % 2:
                send(connection, b"NO")
            connection.close()
        else:
            self.session = Session(connection, peer[1])
            send(connection, b"OK")

    def serve(self):
        line = receive(self.session.connection)
        if not line:
            self.session.connection.close()
            self.session = None
        elif "silent" not in self.settings():
            reply = self.command(line.decode().strip(), self.session.uid)
            send(self.session.connection, b"R" + reply.encode())

    # -- CUDA processes

    def admit_client(self, connection, peer):
        pid, uid = peer
        self.control_log(f"NEW CLIENT {pid} from user {0 if self.multiuser else uid}: Server is not ready")
        server = self.server_for(uid) or self.start_server(uid)
        if server is None or not server.alive() or "FAULT" in server.status(self.settings()):
            send(connection, b"805")
            connection.close()
            return
        server.clients[pid] = connection
        self.server_log(f"Client {{PID: {pid}, Context ID: 0}} connected")
        send(connection, b"MPS")

    def lose_client(self, server, connection):
        for pid, held in list(server.clients.items()):
            if held is connection:
                del server.clients[pid]
        connection.close()

    def server_for(self, uid):
        wanted = 0 if self.multiuser else uid
        return next((server for server in self.servers.values() if server.uid == wanted), None)

    def start_server(self, uid):
        if os.getuid() != 0 and uid != os.getuid():
            self.control_log(f"Failed to start server using uid {uid}, error: Operation not permitted")
            return None
        server = Server(self, uid)
        self.servers[server.pid] = server
        return server

    # -- commands

    def command(self, line, uid):
        words = line.split()
        if not words:
            return ""
        handler = COMMANDS.get(words[0])
        if handler is None:
            return f'Unknown command "{words[0]}"\n'
        return handler(self, words[1:], uid)

    def allowed(self, uid):
        return uid in (0, os.getuid())

    def server_named(self, text):
        return self.servers.get(int(text)) if text.isdigit() else None

    def get_server_list(self, _words, _uid):
        return "".join(f"{pid}\n" for pid in self.servers)

    def get_server_status(self, words, _uid):
        if not words:
            return "A server PID is required\n"
        server = self.server_named(words[0])
        return f"{server.status(self.settings())}\n" if server else "Server not found\n"

    def get_client_list(self, words, _uid):
        server = self.server_named(words[0] if words else "0")
        if server is None:
            return f"Server {words[0] if words else 0} not found\n"
        return "".join(f"{pid}\n" for pid in server.clients)

    def get_device_client_list(self, words, _uid):
        servers = [self.server_named(words[0])] if words else list(self.servers.values())
        rows = [f"{pid}\n" for server in servers if server for pid in server.clients]
        return "".join(rows) if any(servers) else "Server not found\n"

    def ps(self, words, _uid):
        only = words[1] if words[:1] == ["-p"] and len(words) > 1 else None
        rows = ["PID ID SERVER DEVICE NAMESPACE COMMAND\n"]
        for server in self.servers.values():
            for pid in server.clients:
                if only in (None, str(pid)):
                    rows.append(f"{pid} 1 {server.pid} {self.uuid[:12]} 4026531836 cuda\n")
        return "".join(rows)

    def start(self, words, uid):
        wanted = int(words[1]) if words[:1] == ["-uid"] and len(words) > 1 else uid
        if self.allowed(uid) or wanted == uid:
            self.start_server(wanted)
        return ""

    def shutdown_server(self, words, uid):
        server = self.server_named(words[0] if words else "0")
        if server is None:
            return f"Server {words[0] if words else 0} not found\n"
        if (self.allowed(uid) or server.uid == uid) and (not server.clients or "-f" in words):
            server.stop()
        return ""

    def quit(self, _words, uid):
        if not self.allowed(uid):
            return "Not enough privilege to execute quit command\n"
        if "no_quit" not in self.settings():
            # The command is answered first; the process goes a little later.
            self.ends_at = time.monotonic() + 0.15
        return ""

    def set_default_percentage(self, words, uid):
        value = parse_percentage(words[0] if words else "")
        if value is not None and self.allowed(uid):
            self.percentage = value
        return f"{self.percentage:.1f}\n"

    def get_default_percentage(self, _words, _uid):
        return f"{self.percentage:.1f}\n"

    def set_percentage(self, words, uid):
        server = self.server_named(words[0] if words else "0")
        if server is None:
            return "Server not found\n"
        value = parse_percentage(words[1] if len(words) > 1 else "")
        if value is not None and self.allowed(uid):
            server.percentage = value
        return f"{server.percentage:.1f}\n"

    def get_percentage(self, words, _uid):
        server = self.server_named(words[0] if words else "0")
        return f"{server.percentage:.1f}\n" if server else "Server not found\n"

    def size_set(self, words):
        """(whether device 0 is meant, the limit) of `DEV VALUE`. A UUID is not understood and clears device 0's."""
        device, value = words[0], words[1] if len(words) > 1 else "0"
        if not device.isdigit():
            return True, None
        if int(device) >= 32:
            self.control_log("Invalid device ordinal!")
            return False, None
        misparsed = self.settings().get("misparse_mib")
        limit = int(misparsed) * MIB if misparsed else parse_size(value)
        return device == ONE_DEVICE, limit

    def set_default_limit(self, words, uid):
        if words and self.allowed(uid):
            meant, limit = self.size_set(words)
            if meant:
                self.limit = limit
        return ""

    def get_default_limit(self, _words, _uid):
        return f"{shown_size(self.limit)}\n"

    def set_limit(self, words, uid):
        server = self.server_named(words[0] if words else "0")
        if server is None:
            return "Server not found\n"
        meant, limit = self.size_set(words[1:])
        if meant and self.allowed(uid) and "ignore_server_limit" not in self.settings():
            server.limit = limit
        return ""

    def get_limit(self, words, _uid):
        server = self.server_named(words[0] if words else "0")
        return f"{shown_size(server.limit)}\n" if server else "Server not found\n"

    def set_priority(self, words, _uid):
        return "" if words in (["0"], ["1"]) else "Invalid priority value - must be 0 or 1!\n"

    def terminate_client(self, words, uid):
        server = self.server_named(words[0] if words else "0")
        if server is None:
            return f"Server {words[0] if words else 0} not found\nFailed to terminate client\n1\n"
        pid = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        if pid not in server.clients or not (self.allowed(uid) or server.uid == uid):
            return "Client not found\nFailed to terminate client\n1\n"
        if "terminate_fails" in self.settings():
            return "Failed to terminate client\n1\n"
        connection = server.clients.pop(pid)
        send(connection, b"810")
        connection.close()
        return "0\n"


COMMANDS = {
    "get_server_list": Daemon.get_server_list,
    "get_server_status": Daemon.get_server_status,
    "get_client_list": Daemon.get_client_list,
    "get_device_client_list": Daemon.get_device_client_list,
    "ps": Daemon.ps,
    "start_server": Daemon.start,
    "shutdown_server": Daemon.shutdown_server,
    "quit": Daemon.quit,
    "set_default_active_thread_percentage": Daemon.set_default_percentage,
    "get_default_active_thread_percentage": Daemon.get_default_percentage,
    "set_active_thread_percentage": Daemon.set_percentage,
    "get_active_thread_percentage": Daemon.get_percentage,
    "set_default_device_pinned_mem_limit": Daemon.set_default_limit,
    "get_default_device_pinned_mem_limit": Daemon.get_default_limit,
    "set_device_pinned_mem_limit": Daemon.set_limit,
    "get_device_pinned_mem_limit": Daemon.get_limit,
    "set_default_client_priority": Daemon.set_priority,
    "terminate_client": Daemon.terminate_client,
}


def peer_of(connection):
    """(pid, uid) of the other side."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(raw[:4], sys.byteorder), int.from_bytes(raw[4:8], sys.byteorder)


def receive(connection):
    try:
        return connection.recv(65536)
    except OSError:
        return b""


def send(connection, data):
    try:
        connection.send(data)
    except OSError:
        pass


def run_daemon(background, multiuser):
    directory = pipe_directory()
    if len(directory) > MAX_PIPE_PATH:
        return 1
    if not os.path.isdir(directory):
        print(f"Cannot access CUDA_MPS_PIPE_DIRECTORY={directory}")
        return 1
    lock = os.open(os.path.join(directory, "control_lock"), os.O_RDWR | os.O_CREAT, 0o666)
    os.chmod(os.path.join(directory, "control_lock"), 0o666)  # noqa: S103 - as the real one
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("An instance of this daemon is already running")
        return 1
    if not os.path.isdir(os.environ.get("CUDA_MPS_LOG_DIRECTORY", "/var/log/nvidia-mps")):
        print("Warning: Failed writing log files to directory", file=sys.stderr)
    if not background:
        Daemon(directory, multiuser).run()
        return 0
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) else 1
    os.setsid()
    if os.fork():
        os._exit(0)
    for fd in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
    daemon = Daemon(directory, multiuser)
    os.write(tell, b"1")
    os.close(tell)
    daemon.run()
    os._exit(0)


def main(arguments):
    version = release(settings(""))
    if arguments == ["-v"] and version >= 555:
        print(BANNER, end="")
        return 1
    if "-multiuser-server" in arguments and version < 555:
        print("unrecognized option -multiuser-server")
        return 1
    if "-d" in arguments or "-f" in arguments:
        return run_daemon("-d" in arguments, "-multiuser-server" in arguments)
    # Anything else is taken for a client call without a daemon.
    print("Cannot find MPS control daemon process")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
