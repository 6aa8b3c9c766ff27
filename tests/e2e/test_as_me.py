"""A job runs as the person who submitted it, from where they did: real accounts, a root agent, enrolment, the CLI.

The agent runs without the capabilities that let root pass over file modes, as on a file server that squashes root: all
that it does for a user it does as that user.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from accounts import Account, everybodys_path, everybodys_python, two_accounts, why_no_accounts
from live_cluster import TENANT, LiveCluster, live_cluster, run, until

from gpushare.client.messages import Role
from gpushare_agent import cgroups

NODE = "host1"
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
DAC_CAPABILITIES = 0b110

# Says who and where it is, in a file that it makes; every process of it leaves its four user ids with the witness.
TRAIN = """
import json, os, subprocess, sys
WITNESS = os.environ["HOME"] + "/witness"
LINE = "grep ^Uid: /proc/self/status >> " + WITNESS
subprocess.run(["sh", "-c", LINE + "; (" + LINE + ")"], check=True)
with open("/proc/self/status") as status, open(WITNESS, "a") as witness:
    witness.writelines(line for line in status if line.startswith("Uid:"))
scratch = os.environ["GPUSHARE_SCRATCH"]
os.makedirs(scratch + "/deep/er", mode=0o700)
open(scratch + "/deep/er/file", "w").close()
found = os.stat(scratch)
with open("result.json", "w") as result:
    json.dump({
        "cwd": os.getcwd(), "groups": os.getgroups(), "gids": os.getresgid(), "python": sys.executable,
        "prefix": sys.prefix, "env": dict(os.environ), "scratch": [found.st_uid, found.st_mode & 0o777],
        "home_mode": os.stat(os.environ["HOME"]).st_mode & 0o777,
    }, result)
os.mkdir("checkpoints")
open("checkpoints/1.pt", "w").close()
"""

# What `conda activate` does to an interactive shell, as far as a program can see.
CONDA = """
conda() {
    [ "$1" = activate ] || return 1
    export CONDA_PREFIX="$HOME/conda/envs/$2" CONDA_DEFAULT_ENV="$2" CONDA_SHLVL=1 CONDA_EXE="$HOME/conda/bin/conda"
    export PATH="$CONDA_PREFIX/bin:$PATH"
}
"""


def why_not() -> str:
    missing = why_no_accounts()
    if missing:
        return missing
    if not everybodys_python():
        return "there is no Python of this version that other users may run"
    try:
        cgroups.release(cgroups.probe(f"look-{os.getpid()}"))
    except cgroups.CgroupsUnavailable as err:
        return f"no control groups here: {err}"
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "all is here")


class Lab:
    """A cluster with one node, and a student with a token and a home of mode 0700."""

    def __init__(self, cluster: LiveCluster, student: Account, other: Account) -> None:
        self.cluster, self.student, self.other = cluster, student, other
        self.witness = student.write("witness", "")

    async def log_in(self) -> None:
        token = await self.cluster.admin.create_token(
            self.student.name, Role.ROLE_USER, tenant=TENANT, unix_user=self.student.name
        )
        self.cluster.use_token(token.secret)
        await self.typed(f"gpushare login '{token.join}'")

    async def typed(self, line: str, code: int = 0, **environ: str) -> str:
        """What the student types, and all that comes back."""
        python = everybodys_python()
        prelude = f'gpushare() {{ PYTHONPATH={everybodys_path()} {python} -m gpushare.cli.main "$@"; }}; '
        prelude += ". ~/conda.sh; "
        known = {"PATH": "/usr/local/bin:/usr/bin:/bin", **environ}
        done = await asyncio.to_thread(self.student.run, prelude + line, known)
        assert done.returncode == code, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def project(self, name: str) -> Path:
        """A directory of the student's with train.py, of mode 0700."""
        return self.student.write(f"{name}/train.py", TRAIN).parent

    def result(self, project: Path) -> dict[str, object]:
        found = json.loads((project / "result.json").read_text())
        assert found["cwd"] == str(project)
        assert set(found["groups"]) == self.student.groups
        assert found["gids"] == [self.student.gid] * 3
        assert found["home_mode"] == 0o700
        assert found["scratch"] == [self.student.uid, 0o700]
        env = found["env"]
        assert (env["HOME"], env["USER"], env["GPUSHARE_NODE"]) == (str(self.student.home), self.student.name, NODE)
        return found  # type: ignore[no-any-return]

    def check_nothing_ran_as_another(self) -> None:
        """Every process of every job had the student's user id, four times, and every file is the student's."""
        lines = self.witness.read_text().splitlines()
        assert lines
        assert {tuple(line.split()[1:]) for line in lines} == {(str(self.student.uid),) * 4}
        for folder, folders, files in os.walk(self.student.home):
            for name in (*folders, *files):
                assert os.lstat(Path(folder) / name).st_uid == self.student.uid, Path(folder) / name


def in_lab(test: Callable[[Lab], Awaitable[None]]) -> None:
    async def body() -> None:
        with two_accounts() as (student, other, place):
            async with live_cluster(place / "c") as cluster:
                await cluster.add_agent(
                    NODE, "2xH100-80GB", prefix=UNPRIVILEGED, containment="require", single_user=False
                )
                await cluster.ready()
                status = Path(f"/proc/{cluster.agents[NODE].pid}/status").read_text()
                assert not int(status.split("CapEff:")[1].split()[0], 16) & DAC_CAPABILITIES
                student.write("conda.sh", CONDA)
                lab = Lab(cluster, student, other)
                await lab.log_in()
                await test(lab)
                scratch = cluster.node_home(NODE) / "state" / "scratch"
                await until(lambda: not os.listdir(scratch), f"{scratch} is empty")

    run(body, within_s=170)


@pytest.mark.timeout(200)
def test_the_students_line_in_a_conda_environment_a_venv_and_a_script() -> None:
    async def test(lab: Lab) -> None:
        student = lab.student
        student.write("conda/envs/x/conda-meta/history", "")
        (binary := student.write("conda/envs/x/bin/python", "")).unlink()
        binary.symlink_to(everybodys_python())
        os.chown(binary, student.uid, student.gid, follow_symlinks=False)

        project = lab.project("proj")
        await lab.typed("cd ~/proj; conda activate x; gpushare run --gpus 0.25 -- python train.py")
        found = lab.result(project)
        env = found["env"]
        assert isinstance(env, dict)
        assert found["python"] == str(binary)
        assert (env["CONDA_PREFIX"], env["CONDA_DEFAULT_ENV"]) == (str(student.home / "conda/envs/x"), "x")
        assert env["GPUSHARE_GPU_MILLI"] == "250"
        assert env["CUDA_VISIBLE_DEVICES"].startswith("GPU-")
        assert stat.S_IMODE((project / "checkpoints").stat().st_mode) == 0o755

        project = lab.project("venv proj")
        python = everybodys_python()
        line = f"cd ~/'venv proj'; {python} -m venv --without-pip .venv; . .venv/bin/activate; "
        said = await lab.typed(line + "MINE=1 gpushare run --gpus 0.25 --export all -- python train.py")
        found = lab.result(project)
        env = found["env"]
        assert isinstance(env, dict)
        assert found["prefix"] == env["VIRTUAL_ENV"] == str(project / ".venv")
        assert env["MINE"] == "1"
        assert "note:" not in said, said

        project = lab.project("by script")
        student.write(
            "by script/job.sh", "#!/bin/sh\n# CUDA_VISIBLE_DEVICES=3 is what they said\nexec python3 train.py\n"
        )
        said = await lab.typed("cd ~/'by script'; gpushare run --gpus 1 --visible-devices index job.sh")
        env = lab.result(project)["env"]
        assert isinstance(env, dict)
        assert env["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert "CUDA_VISIBLE_DEVICES=3 is asked for, but this job sees one card, as cuda:0" in said
        lab.check_nothing_ran_as_another()

    in_lab(test)


@pytest.mark.timeout(200)
def test_a_directory_that_is_missing_or_not_ones_own_ends_the_job_once_and_says_where() -> None:
    async def test(lab: Lab) -> None:
        gone = lab.student.home / "gone"
        for path, why in ((gone, "No such file or directory"), (lab.other.home, "Permission denied")):
            said = await lab.typed(f"gpushare run --gpus 0 --max-retries 3 --chdir {path} -- true", code=125)
            assert "WORKDIR" in said
            assert f"{path} on node {NODE}: {why}" in said
        for job in (await lab.cluster.jobs()).values():
            assert (job.reason, job.retries, job.infra_retries) == ("WORKDIR", 0, 0)
            assert [task.number for task in job.tasks] == [1]

    in_lab(test)
