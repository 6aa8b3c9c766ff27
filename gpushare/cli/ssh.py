"""`gpushare ssh-config` and `ssh-proxy`: a job as a host that ssh, scp, rsync and VS Code can reach.

Imports click; the client only when a command runs. `ssh-config` prints what belongs into ~/.ssh/config; the
ProxyCommand in it is `ssh-proxy`, an exec in the job.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpushare.cli.session import root_flags, with_client

if TYPE_CHECKING:
    from gpushare.cli.sshsetup import SshHome
    from gpushare.client.aio import AsyncClient
    from gpushare.client.messages import ConnectionStart, Job
    from gpushare.errors import GpushareError


@click.command("ssh-config")
@click.argument("job", metavar="JOB[/TASK]")
@with_client
async def ssh_config(client: AsyncClient, job: str) -> None:
    """Print a Host block for ~/.ssh/config, with which `ssh gpushare-JOB`, scp, rsync and VS Code reach the job.

    `gpushare ssh-config 42 >> ~/.ssh/config; ssh gpushare-42`. The job must run, and its node have openssh-server.
    """
    from gpushare.cli import sshsetup
    from gpushare.cli.connecting import one_task

    found, task_index = await one_task(client, job)
    home = _home()
    try:
        home.public_key()
        user, host_key = sshsetup.parse_first_line(await _check(client, _start(found, task_index, "check", "")))
        home.remember(_alias(found, task_index), host_key)
    except sshsetup.SetupError as err:
        raise _refused(err) from err
    short = job.replace("/", "-").removeprefix("@")
    lines = [
        f"Host gpushare-{short}",
        f"    HostName {_alias(found, task_index)}",
        f"    HostKeyAlias {_alias(found, task_index)}",
        f"    User {user}",
        f"    ProxyCommand {_proxy_command(found, task_index)}",
        f'    IdentityFile "{home.key}"',
        "    IdentitiesOnly yes",
        f'    UserKnownHostsFile "{home.known_hosts}"',
        "    GlobalKnownHostsFile none",
        "    StrictHostKeyChecking yes",
    ]
    print("\n".join(lines))


@click.command("ssh-proxy")
@click.argument("job", metavar="JOB[/TASK]")
@with_client
async def ssh_proxy(client: AsyncClient, job: str) -> int:
    """Be the way of ssh into a job, on standard input and output; `ssh-config` prints how ssh calls it."""
    from gpushare.cli import sshsetup
    from gpushare.cli.connecting import one_task
    from gpushare.cli.interrupts import Interrupts
    from gpushare.cli.talking import talk

    found, task_index = await one_task(client, job)
    home = _home()
    try:
        start = _start(found, task_index, "serve", home.public_key())
    except sshsetup.SetupError as err:
        raise _refused(err) from err

    def take_first_line(line: bytes) -> None:
        """Before a byte of the protocol passes, ssh finds the key that it is about to check."""
        try:
            _, host_key = sshsetup.parse_first_line(line)
            home.remember(_alias(found, task_index), host_key)
        except sshsetup.SetupError as err:
            raise _refused(err) from err

    with Interrupts() as interrupts:
        async with client.connect(start) as connection:
            return await talk(connection, interrupts, take_first_line)


async def _check(client: AsyncClient, start: ConnectionStart) -> bytes:
    said, complained = b"", b""
    async with client.connect(start) as connection, contextlib.aclosing(connection.received()) as responses:
        await connection.end_input()
        async for response in responses:
            said += response.output
            complained += response.error_output
    line = said.partition(b"\n")[0]
    return line or complained.strip().rpartition(b"\n")[2]


def _start(job: Job, task_index: int, mode: str, public_key: str) -> ConnectionStart:
    from gpushare.cli import sshsetup
    from gpushare.client.messages import ConnectionStart, Exec

    wanted = Exec(argv=sshsetup.command(mode, public_key))
    return ConnectionStart(name=job.name, task_index=task_index, exec=wanted)


def _home() -> SshHome:
    from gpushare.cli.sshsetup import SshHome
    from gpushare.client.settings import context_path

    return SshHome(context_path().parent / "ssh")


def _alias(job: Job, task_index: int) -> str:
    task = f"-{task_index}" if job.spec.tasks > 1 else ""
    return f"gpushare-{job.tenant}-{job.id}{task}"


def _proxy_command(job: Job, task_index: int) -> str:
    """This very program with the flags that it was called with; ssh gives it to a shell, and reads % by itself."""
    program = shutil.which(sys.argv[0])
    words = [os.path.abspath(program)] if program else [sys.executable, "-m", "gpushare.cli.main"]
    for name, value in root_flags().items():
        if value is not None and name != "token":
            words += [f"--{name}", str(Path(value).absolute()) if name == "ca" else value]
    if "GPUSHARE_CONFIG" in os.environ:
        words = ["env", f"GPUSHARE_CONFIG={Path(os.environ['GPUSHARE_CONFIG']).absolute()}", *words]
    task = f"/{task_index}" if job.spec.tasks > 1 else ""
    return shlex.join([*words, "ssh-proxy", f"{job.tenant}/{job.id}{task}"]).replace("%", "%%")


def _refused(err: Exception) -> GpushareError:
    from gpushare.errors import FailedPreconditionError
    from gpushare.reasons import Reason

    told = f"ssh cannot reach the job: {err}."
    return FailedPreconditionError(Reason.SSH_UNAVAILABLE, told)
