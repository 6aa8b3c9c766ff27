"""A job as a host of ssh: sessions that land in it, files both ways, keys that are checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from upcluster import UpCluster

MISSING = [each for each in ("ssh", "scp", "ssh-keygen") if shutil.which(each) is None]
MISSING += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
needs_ssh = pytest.mark.skipif(
    bool(MISSING), reason=f"needs {' '.join(MISSING)} (apt-get install openssh-client openssh-server)"
)
LIMIT_S = 200.0
MIB = 1 << 20


class Ssh:
    """The system's ssh with what `gpushare ssh-config` printed for one job."""

    def __init__(self, cluster: UpCluster, job: str) -> None:
        self.host = f"gpushare-{job}"
        self.config = cluster.home / f"ssh-{job}"
        self.config.write_text(cluster.ok("ssh-config", job).out)
        self._environ = cluster.environment()

    def run(self, *words: str, program: str = "ssh") -> subprocess.CompletedProcess[str]:
        command = [program, "-F", str(self.config), "-o", "BatchMode=yes", *words]
        return subprocess.run(command, env=self._environ, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.fixture
def job(up_cluster: UpCluster) -> Iterator[str]:
    words = ["submit", "--gpus", "0.1", "--host-memory", "1G", "--parsable", "--env", "PLAIN=a b;$c", "--", "sh", "-c"]
    found = up_cluster.ok(*words, "cat /proc/self/cgroup; exec sleep 1000").out.strip()
    up_cluster.wait_for(found, "RUNNING")
    yield found
    up_cluster.ok("cancel", found)
    up_cluster.wait_for(found, "CANCELLED")


@needs_ssh
def test_ssh_lands_in_the_job_with_its_limits_and_environment(up_cluster: UpCluster, job: str) -> None:
    ssh = Ssh(up_cluster, job)
    done = ssh.run(ssh.host, "cat /proc/self/cgroup")
    assert (done.returncode, done.stdout) == (0, up_cluster.ok("logs", job).out), done.stderr
    done = ssh.run(ssh.host, 'echo "$GPUSHARE_JOB_ID|$CUDA_VISIBLE_DEVICES|$PLAIN|$(id -un)"; exit 9')
    card = up_cluster.job(job)["tasks"][0]["gpuUuids"][0]
    user = up_cluster.ok("exec", job, "--", "id", "-un").out.strip()
    assert (done.returncode, done.stdout) == (9, f"{job}|{card}|a b;$c|{user}\n")
    # A second session meets the same key; the job has made no other.
    assert ssh.run(ssh.host, "true").returncode == 0
    known = (up_cluster.home / "ssh" / "known_hosts").read_text().splitlines()
    assert len([line for line in known if line.startswith(f"gpushare-default-{job} ")]) == 1


@needs_ssh
@pytest.mark.timeout(500)
@pytest.mark.parametrize("mib", [10, pytest.param(100, marks=pytest.mark.prove)])
def test_a_large_file_arrives_whole_each_way(up_cluster: UpCluster, job: str, tmp_path: Path, mib: int) -> None:
    ssh = Ssh(up_cluster, job)
    tmp_path.chmod(0o777)
    digest = hashlib.sha256()
    with (tmp_path / "big").open("wb") as file:
        for _ in range(mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    there = ssh.run(str(tmp_path / "big"), f"{ssh.host}:{tmp_path}/there", program="scp")
    assert there.returncode == 0, there.stderr
    assert ssh.run(ssh.host, f"sha256sum < {tmp_path}/there").stdout.split()[0] == digest.hexdigest()
    back = ssh.run(f"{ssh.host}:{tmp_path}/there", str(tmp_path / "back"), program="scp")
    assert back.returncode == 0, back.stderr
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest.hexdigest()
    (tmp_path / "big").unlink()
    (tmp_path / "there").unlink()
    (tmp_path / "back").unlink()


@needs_ssh
@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync (apt-get install rsync)")
def test_rsync_works(up_cluster: UpCluster, job: str, tmp_path: Path) -> None:
    ssh = Ssh(up_cluster, job)
    tmp_path.chmod(0o777)
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").write_text("content")
    words = ["rsync", "-a", "-e", f"ssh -F {ssh.config}", f"{tmp_path}/tree/", f"{ssh.host}:{tmp_path}/copy/"]
    subprocess.run(words, env=up_cluster.environment(), check=True, timeout=LIMIT_S, capture_output=True)
    assert (tmp_path / "copy" / "sub" / "file").read_text() == "content"


@needs_ssh
def test_another_key_is_not_let_in_and_another_host_is_not_believed(
    up_cluster: UpCluster, job: str, tmp_path: Path
) -> None:
    ssh = Ssh(up_cluster, job)
    assert ssh.run(ssh.host, "true").returncode == 0
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True, timeout=60)
    other = ssh.config.read_text().replace(f'"{up_cluster.home}/ssh/id_ed25519"', str(tmp_path / "key"))
    assert str(tmp_path / "key") in other
    ssh.config.write_text(other)
    refused = ssh.run(ssh.host, "true")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr
    # What is known here is what the job's connection said, so a host of another key is nobody that ssh knows.
    (tmp_path / "known").write_text(f"gpushare-default-{job} {(tmp_path / 'key.pub').read_text()}")
    fooled = ssh.run("-o", f"UserKnownHostsFile={tmp_path / 'known'}", ssh.host, "true")
    assert fooled.returncode == 255
    assert "IDENTIFICATION HAS CHANGED" in fooled.stderr


def test_a_node_without_sshd_says_which_package_is_missing(up_cluster: UpCluster, tmp_path: Path) -> None:
    from gpushare.cli import sshsetup

    script = sshsetup.SCRIPT.replace("/usr/sbin/sshd /usr/local/sbin/sshd /usr/lib/ssh/sshd", "/nonexistent/sshd")
    environ = {"PATH": "/usr/bin:/bin", "GPUSHARE_NODE": "n7", "GPUSHARE_PRIVATE_DIR": str(tmp_path)}
    done = subprocess.run(["/bin/sh", "-c", script, "x", "check", ""], env=environ, capture_output=True, timeout=60)
    with pytest.raises(sshsetup.SetupError, match="node n7 has no sshd: its admin installs the package openssh-server"):
        sshsetup.parse_first_line(done.stdout)
