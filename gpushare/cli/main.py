"""The root of the command line: which commands exist, and how any of them ends.

Imports click and the standard library alone, so that `gpushare --help` starts fast; every command's module is imported
when that command is asked for. Invariants: a refusal is one line `error: REASON: sentence` on stderr and never a
traceback; exit codes are 0 ok, 1 refused or failed, 2 usage, 3 scheduler out of reach, and for `run`, `wait` and those
who sit at a job, whose codes belong to it, 125 for every failure of their own.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import sys

import click

from gpushare.cli.exits import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OWN_FAILURE,
    EXIT_USAGE,
)
from gpushare.cli.usageerrors import sentences

# New containers before Python's cycle collector looks; the imports of a command make fewer.
COLLECT_AFTER = 100_000
# Commands that return the job's code, so that a code of their own must be told apart.
JOB_CODE_COMMANDS = frozenset({"run", "wait", "shell", "attach", "exec"})
# Set by the scripts of `gpushare completion`.
COMPLETE_ENV = "_GPUSHARE_COMPLETE"

# name -> (module, attribute, short help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": ("gpushare.cli.up", "up", "Scheduler and agents on this machine, in the foreground."),
    "demo": ("gpushare.cli.demo", "demo", "Two tenants share one simulated card, end to end."),
    "login": ("gpushare.cli.logins", "login", "Connect to a cluster: by an admin's line, or by this host's word."),
    "logout": ("gpushare.cli.logins", "logout", "Revoke your token and forget the connection."),
    "contexts": ("gpushare.cli.logins", "contexts", "List the clusters you are logged in to, or choose one."),
    "whoami": ("gpushare.cli.logins", "whoami", "Who you are, where, and until when."),
    "submit": ("gpushare.cli.submit", "submit", "Queue a job and return at once."),
    "run": ("gpushare.cli.submit", "run", "Run a job here: follow its output, return its code."),
    "shell": ("gpushare.cli.connecting", "shell", "Run a shell as a job, and sit at it."),
    "attach": ("gpushare.cli.connecting", "attach", "Sit at a running job again."),
    "exec": ("gpushare.cli.connecting", "exec_", "Run a command beside a running task, within its limits."),
    "port-forward": ("gpushare.cli.portforward", "port_forward", "Reach a server inside a job at a port here."),
    "ssh-config": ("gpushare.cli.ssh", "ssh_config", "Let ssh, scp, rsync and VS Code reach a job."),
    "ssh-proxy": ("gpushare.cli.ssh", "ssh_proxy", "What ssh-config tells ssh to run."),
    "jobs": ("gpushare.cli.jobs", "jobs", "List jobs, newest first."),
    "job": ("gpushare.cli.jobs", "job", "Everything about one job."),
    "explain": ("gpushare.cli.jobs", "explain", "Why a job waits, and what would start it."),
    "logs": ("gpushare.cli.logs", "logs", "Print a job's output."),
    "wait": ("gpushare.cli.wait", "wait", "Wait for jobs to end, return their code."),
    "cancel": ("gpushare.cli.jobs", "cancel", "Stop jobs."),
    "extend": ("gpushare.cli.jobends", "extend", "Give a job a longer time limit."),
    "requeue": ("gpushare.cli.jobends", "requeue", "Stop jobs and queue them again."),
    "resubmit": ("gpushare.cli.jobends", "resubmit", "Submit jobs anew, as they were."),
    "nodes": ("gpushare.cli.nodes", "nodes", "List nodes."),
    "gpus": ("gpushare.cli.nodes", "gpus", "List cards and what each can fence."),
    "node": ("gpushare.cli.nodes", "node", "Cordon, drain, set or enrol a node (admin)."),
    "reservation": ("gpushare.cli.reservations", "reservation", "Promise capacity in a window of time (admin)."),
    "repack": ("gpushare.cli.repack", "repack", "Move suspendable jobs together (admin)."),
    "tenant": ("gpushare.cli.tenants", "tenant", "Create, show, change and delete tenants (admin)."),
    "quota": ("gpushare.cli.quota", "quota", "Try other quotas before they are set (admin)."),
    "token": ("gpushare.cli.tokens", "token", "Create, list and revoke tokens (admin)."),
    "usage": ("gpushare.cli.usage", "usage", "Who used how much."),
    "audit": ("gpushare.cli.usage", "audit", "Who did what (admin)."),
    "host": ("gpushare.cli.host", "host", "Upgrade the gpushare of this host, and go back (root)."),
    "doctor": ("gpushare.cli.doctor", "doctor", "What this host lacks to run jobs, and what mends it."),
    "simulate": ("gpushare.cli.simulate", "simulate", "The scheduler's own code on a trace, without a cluster."),
    "completion": ("gpushare.cli.completion", "completion", "Shell completion for bash, zsh or fish."),
}


def _taught(command: click.Command) -> click.Command:
    """With what a shell may complete, where it is a shell that asks."""
    if COMPLETE_ENV not in os.environ:
        return command
    from gpushare.cli.completing import teach

    return teach(command)


class RootGroup(click.Group):
    """Knows every command by name and imports a command's module only to run it."""

    # The command that was asked for, known even where its own arguments did not parse.
    chosen = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self.chosen = cmd_name
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry[0]), entry[1])
        return _taught(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 refused or failed, 2 usage, 3 scheduler out of reach. `run`, `wait`, `shell`, `attach` "
    "and `exec` return the job's own code, and 125 for a failure that is not the job's.",
)
@click.option("--server", metavar="HOST:PORT", help="The scheduler [env: GPUSHARE_SERVER, else the context].")
@click.option("--token", help="Who you are; seen by `ps`, so prefer the variable [env: GPUSHARE_TOKEN].")
@click.option("--ca", metavar="FILE", help="CA certificate of the scheduler, PEM [env: GPUSHARE_CA].")
@click.option("--context", metavar="NAME", help="A named context of the context file in place of the current.")
@click.option("--timeout", metavar="TIME", help="How long a call may be tried, e.g. 30s (10s).")
@click.version_option(package_name="gpushare-cluster", message="gpushare %(version)s")
@click.pass_context
def root(ctx: click.Context, /, **flags: str | None) -> None:
    """Share the GPUs of ordinary servers between tenants."""
    ctx.obj = flags


def main(argv: list[str] | None = None) -> None:
    """The console script. Always ends the process with one of the documented codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 shows an escape in place of what it cannot.
            stream.reconfigure(errors="backslashreplace")
    if argv is not None:
        sys.exit(_run(argv))
    # A process of its own: most of what a command makes stays until its end, so that looking for garbage among it while
    # modules are imported, and once more at the end, was a quarter of the time of a short command.
    gc.set_threshold(COLLECT_AFTER)
    code = _run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        outcome = _taught(root).main(args=arguments, prog_name="gpushare", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as err:
        print(err.format_message(), file=sys.stderr)
        return EXIT_USAGE
    except click.UsageError as err:
        *others, last = sentences(err)
        for each in others:
            _fail(each, EXIT_USAGE)
        return _fail(last, EXIT_USAGE)
    except click.ClickException as err:
        return _fail(f"INVALID_FIELD: {err.format_message()}", EXIT_FAILED)
    except BrokenPipeError:
        # Whoever read our output has enough of it; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except Exception as err:
        from gpushare.cli.failures import describe

        return _fail(*describe(err, root.chosen))
    return outcome if isinstance(outcome, int) else 0


def _fail(sentence: str, exit_code: int) -> int:
    from gpushare.cli.inert import inert

    print(f"error: {inert(sentence)}", file=sys.stderr, flush=True)
    return EXIT_OWN_FAILURE if root.chosen in JOB_CODE_COMMANDS else exit_code


if __name__ == "__main__":
    main()
