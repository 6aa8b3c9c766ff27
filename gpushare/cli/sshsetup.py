"""What makes `ssh` reach a job: the script that runs inside it, and the keys and known hosts on this side.

Imports the standard library. Inside, a `sshd -i` of the job's own user, on the connection that `ssh-proxy` is: no port
is opened and no root is needed. Invariants: the host's key is made in the job's own directory, and known here because
it came over the scheduler's connection, so that `ssh` may check it strictly; the key of this side is this person's
alone, and is let in to jobs by whoever may `exec` in them.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path

MARK = b"gpushare-ssh"
KEYGEN_TIMEOUT_S = 10.0
LOCK_TIMEOUT_S = 10.0

#: Arguments: check or serve; the public key that is let in. The first line of its output is MARK and "ok USER HOSTKEY",
#: or MARK and "error TEXT"; behind an ok comes the protocol of ssh itself.
SCRIPT = r"""
set -eu
umask 077
fail() { printf 'gpushare-ssh error %s\n' "$1"; exit 1; }
sshd=
for each in /usr/sbin/sshd /usr/local/sbin/sshd /usr/lib/ssh/sshd "$(command -v sshd || :)"; do
  if [ -x "$each" ]; then sshd=$each; break; fi
done
[ -n "$sshd" ] || fail "node $GPUSHARE_NODE has no sshd: its admin installs the package openssh-server"
command -v ssh-keygen >/dev/null || fail "node $GPUSHARE_NODE has no ssh-keygen: its admin installs openssh-client"
dir=$GPUSHARE_PRIVATE_DIR/ssh
mkdir -p "$dir" 2>/dev/null || fail "the job cannot write to its directory $GPUSHARE_PRIVATE_DIR"
if [ ! -f "$dir/host_key" ]; then
  ssh-keygen -q -t ed25519 -N '' -C "job $GPUSHARE_JOB_ID" -f "$dir/new.$$" </dev/null >/dev/null
  ln "$dir/new.$$" "$dir/host_key" 2>/dev/null || :
  rm -f "$dir/new.$$" "$dir/new.$$.pub"
fi
host_key=$(ssh-keygen -y -f "$dir/host_key" </dev/null)
if [ "$1" = check ]; then
  printf 'gpushare-ssh ok %s %s\n' "$(id -un)" "$host_key"
  exit 0
fi
touch "$dir/authorized_keys"
grep -qxF -e "$2" "$dir/authorized_keys" || printf '%s\n' "$2" >>"$dir/authorized_keys"
{
  printf 'HostKey "%s/host_key"\nAuthorizedKeysFile "%s/authorized_keys"\n' "$dir" "$dir"
  cat <<'SETTINGS'
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowAgentForwarding no
X11Forwarding no
PrintMotd no
PrintLastLog no
LogLevel ERROR
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
SETTINGS
  awk 'BEGIN {
    for (name in ENVIRON) {
      if (name !~ /^[A-Za-z_][A-Za-z0-9_]*$/) continue
      if (name ~ /^(PWD|OLDPWD|SHLVL|_|HOME|USER|LOGNAME|SHELL|TERM|MAIL|SSH_.*)$/) continue
      if (ENVIRON[name] ~ /[\n\r"\\]/) continue
      line = line " \"" name "=" ENVIRON[name] "\""
    }
    if (line) print "SetEnv" line
  }'
} >"$dir/config.$$"
mv "$dir/config.$$" "$dir/config"
if [ "$(id -u)" -eq 0 ]; then mkdir -p -m 0755 /run/sshd; fi
printf 'gpushare-ssh ok %s %s\n' "$(id -un)" "$host_key"
exec "$sshd" -i -e -f "$dir/config"
"""


class SetupError(Exception):
    """What stands in the way, in words for the person."""


def command(mode: str, public_key: str = "") -> list[str]:
    """The command for an exec in the job; `mode` is "check" or "serve"."""
    return ["/bin/sh", "-c", SCRIPT, "gpushare-ssh", mode, public_key]


def parse_first_line(line: bytes) -> tuple[str, str]:
    """(user, host key) of what the script said. Raises SetupError."""
    words = line.decode(errors="replace").strip().split(" ", 3)
    if len(words) == 4 and words[:2] == [MARK.decode(), "ok"]:
        return words[2], words[3]
    if words[:2] == [MARK.decode(), "error"]:
        raise SetupError(" ".join(words[2:]))
    raise SetupError(f"the job answered {line[:100]!r} in place of its host key")


class SshHome:
    """The directory of this side: `id_ed25519` and `known_hosts`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = directory / "id_ed25519"
        self.known_hosts = directory / "known_hosts"

    def public_key(self) -> str:
        """Of the key that jobs let in, made where there was none. Raises SetupError."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                if not self.key.exists():
                    _make_key(self.key)
            kind, data, *_ = Path(f"{self.key}.pub").read_text().split()
        except (OSError, ValueError) as err:
            raise SetupError(f"the key {self.key} cannot be made or read: {err}") from err
        return f"{kind} {data} gpushare"

    def remember(self, alias: str, host_key: str) -> None:
        """`alias` is known by that key, and by no earlier one. Raises SetupError."""
        kind, data, *_ = host_key.split()
        try:
            with self._locked():
                lines = self.known_hosts.read_text().splitlines() if self.known_hosts.exists() else []
                kept = [line for line in lines if line.partition(" ")[0] != alias]
                temporary = self.known_hosts.with_suffix(".new")
                temporary.write_text("\n".join([*kept, f"{alias} {kind} {data}"]) + "\n")
                os.replace(temporary, self.known_hosts)
        except OSError as err:
            raise SetupError(f"{self.known_hosts} cannot be written: {err}") from err

    def _locked(self) -> _Lock:
        return _Lock(self.directory / ".lock")


class _Lock:
    """One process at a time. Raises SetupError where another one does not end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    os.close(self._fd)
                    text = f"another gpushare has held {self._path} for {LOCK_TIMEOUT_S:g} s; end it, then try again"
                    raise SetupError(text) from None
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _make_key(path: Path) -> None:
    arguments = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gpushare", "-f", str(path)]
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=KEYGEN_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise SetupError("there is no ssh-keygen here; install the package openssh-client") from None
    except subprocess.TimeoutExpired:
        raise SetupError(f"ssh-keygen did not end within {KEYGEN_TIMEOUT_S:g} s") from None
    if done.returncode:
        raise SetupError(f"ssh-keygen: {done.stderr.strip() or done.stdout.strip()}")
