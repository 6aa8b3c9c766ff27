"""Completion as the shells do it: their own functions, our script, a scheduler that knows some names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_fake import FakeCluster

from gpushare.v1 import job_pb2 as j

# What each shell does at a TAB, and what it then has. Without a line editor zsh cannot be asked itself.
_BASH = """
source <(gpushare completion bash)
COMP_WORDS=({words})
COMP_CWORD={last}
_gpushare_completion gpushare
printf "%s\\n" "${{COMPREPLY[@]}}"
"""
_ZSH = """
autoload -U compinit
compinit -u -D
source <(gpushare completion zsh)
whence -w _gpushare_completion >&2
env COMP_WORDS="{words}" COMP_CWORD={last} _GPUSHARE_COMPLETE=zsh_complete gpushare
"""
_FISH = """
gpushare completion fish | source
complete -C "{line}"
"""
ASK = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed here"))
    for shell in ASK
]


class Shell:
    def __init__(self, environment: dict[str, str], home: Path) -> None:
        self.environment = {**os.environ, **environment, "HOME": str(home)}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        for name in ("GPUSHARE_SERVER", "GPUSHARE_TOKEN", "GPUSHARE_CA"):
            self.environment.pop(name, None)

    def tab(self, *words: str, shell: str = "bash") -> list[str]:
        """What is offered for the last of `gpushare WORDS`, with patience for a slow machine."""
        words = ("--timeout", "30s", *words)
        line = " ".join(["gpushare", *words])
        quoted = " ".join(["gpushare", *(word or "''" for word in words)]) if shell == "bash" else line
        script = ASK[shell].format(words=quoted, last=len(words), line=line)
        done = subprocess.run([shell, "-c", script], env=self.environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "rror" in done.stderr) == (0, False), done
        lines = done.stdout.splitlines()
        if shell == "zsh":
            return lines[1::3]
        return [offer.split("\t")[0] for offer in lines if offer]


@pytest.fixture
def shell(environment: dict[str, str], cluster: FakeCluster, tmp_path: Path) -> Shell:
    cluster.add("1", j.JOB_STATE_SUCCEEDED)
    cluster.add("2", spec=j.JobSpec(name="train"))
    cluster.add("3_0")
    cluster.add("3_1")
    return Shell(environment, tmp_path)


@pytest.mark.parametrize("kind", SHELLS)
def test_commands_options_and_jobs_are_completed(shell: Shell, kind: str) -> None:
    assert shell.tab("ca", shell=kind) == ["cancel"]
    assert shell.tab("node", "unc", shell=kind) == ["uncordon"]
    assert shell.tab("submit", "--gpu-m", shell=kind) == ["--gpu-memory"]
    assert set(shell.tab("logs", "", shell=kind)) >= {"@last", "1", "2", "train", "3", "3_0", "3_1"}
    assert shell.tab("logs", "tr", shell=kind) == ["train"]


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        (("wait", "1", "tr"), ["train"]),
        (("cancel", "3_"), ["3_1", "3_0"]),
        (("cancel", "1"), []),
        (("wait", "1"), ["1"]),
        (("submit", "--qos", ""), ["burst", "guaranteed"]),
        (("run", "--on-disconnect", "stop"), ["stop-and-requeue"]),
        (("submit", "--export", "a"), ["all"]),
        (("submit", "--after-ok", "tr"), ["train"]),
        (("node", "drain", "no"), ["node-1"]),
        (("node", "join-token", "no"), []),
        (("tenant", "set", "v"), ["vision"]),
        (("tenant", "create", "v"), []),
        (("run", "--tenant", "v"), ["vision"]),
        (("run", "--model", "H"), ["H100-80GB"]),
        (("token", "revoke", "k"), ["k1"]),
        (("--context", "he"), ["here"]),
        (("jobs", "--state", "suc"), ["succeeded"]),
        (("node", "set", "--trust-logins", "o"), ["on", "off"]),
    ],
)
def test_each_word_is_completed_by_what_it_stands_for(shell: Shell, words: tuple[str, ...], offers: list[str]) -> None:
    assert shell.tab(*words) == offers


def test_a_scheduler_that_is_away_costs_a_moment_and_prints_nothing(shell: Shell, tmp_path: Path) -> None:
    for text in ('current = "x"\n[contexts.x]\nserver = "127.0.0.1:9"\ntoken = "gps_x"\n', "no TOML", ""):
        config = tmp_path / "away.toml"
        config.write_text(text)
        shell.environment |= {"GPUSHARE_CONFIG": str(config), "GPUSHARE_LOGIN_SOCKET": ""}
        began_s = time.monotonic()
        assert shell.tab("--timeout", "1s", "logs", "") == []
        assert time.monotonic() - began_s < 20


def test_words_that_a_shell_would_make_more_of_are_not_offered(shell: Shell, cluster: FakeCluster) -> None:
    from gpushare.v1 import tenant_pb2 as t

    for name in ("$(touch x)", "a b", "*", "`id`", "ok"):
        cluster.tenants[name] = t.Tenant(name=f"tenants/{name}")
    assert shell.tab("tenant", "show", "") == ["vision", "ok"]
