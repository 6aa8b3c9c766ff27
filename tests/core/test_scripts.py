"""Job scripts: what their directives ask for, and which line is to blame where they cannot be followed.

The tables are scripts without their first line (`#!/bin/bash`), so that a line's number in a message is one more than
its place here. They go through `gpushare submit` to a scheduler that keeps what it was sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_calls import Cli, Outcome
from cli_fake import FakeCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpushare.client.directives import Directive, DirectiveError, directives_of
from gpushare.client.sbatch import TAKEN, settings_of
from gpushare.client.slurmvalues import SlurmValueError, array
from gpushare.errors import FieldViolation, error_of
from gpushare.reasons import Reason
from gpushare.v1 import job_pb2 as j


def submit(gpushare: Cli, directory: Path, lines: str, *typed: str, behind: str = "echo\n") -> Outcome:
    script = directory / "train.sh"
    script.write_text(f"#!/bin/bash\n{lines}\n{behind}")
    return gpushare("submit", *typed, str(script))


def facts(spec: j.JobSpec) -> dict[str, Any]:
    """What a spec says, in a form short enough for a table; what it leaves open is left out."""
    asked = spec.resources
    found: dict[str, Any] = {field.name: getattr(asked, field.name) for field, _ in asked.ListFields()}
    found["gpus"] = asked.gpus if asked.HasField("gpus") else None
    for name in ("name", "tasks", "topology", "output_path", "error_path", "array_max_running", "priority"):
        found[name] = getattr(spec, name)
    found["array"] = list(spec.array_indexes)
    found["time_s"] = spec.max_run_duration.seconds
    found["after"] = [(each.job.rpartition("/")[2], each.kind) for each in spec.after]
    found["env"] = dict(spec.env)
    found.pop("node_labels", None)
    return {name: value for name, value in found.items() if value or (name == "gpus" and value is not None)}


NODE = j.TOPOLOGY_NODE
AFTER, ANY, OK = j.DEPENDENCY_KIND_AFTER, j.DEPENDENCY_KIND_AFTERANY, j.DEPENDENCY_KIND_AFTEROK

# The lines -> what the job asks for. Without a word about GPUs it asks for none, as there.
GOOD: dict[str, dict[str, Any]] = {
    "#SBATCH --job-name=train": {"gpus": 0, "name": "train"},
    "#SBATCH -J train": {"gpus": 0, "name": "train"},
    "#SBATCH -Jtrain": {"gpus": 0, "name": "train"},
    "#SBATCH --job-name train --gpus 2": {"gpus": 2, "name": "train"},
    "#SBATCH --job-name='train' # the big one, don't wait": {"gpus": 0, "name": "train"},
    "#SBATCH\t-J\ttrain\t": {"gpus": 0, "name": "train"},
    "#SBATCH -J train\r": {"gpus": 0, "name": "train"},
    "#SBATCH -J first\n#SBATCH -J last": {"gpus": 0, "name": "last"},
    "# a comment\n\n  # another\n#SBATCH -J train": {"gpus": 0, "name": "train"},
    "#SBATCH --gres=gpu": {"gpus": 1},
    "#SBATCH --gres=gpu:2": {"gpus": 2},
    "#SBATCH --gres gpu:h100:2": {"gpus": 2, "gpu_model": "H100-80GB"},
    "#SBATCH --gres=gpu:H100": {"gpus": 1, "gpu_model": "H100-80GB"},
    "#SBATCH --gres=gpu:h100_80gb:1": {"gpus": 1, "gpu_model": "H100-80GB"},
    "#SBATCH --gpus=2": {"gpus": 2},
    "#SBATCH -G 4": {"gpus": 4},
    "#SBATCH -G h100:1": {"gpus": 1, "gpu_model": "H100-80GB"},
    "#SBATCH --gpus-per-node=2": {"gpus": 2},
    "#SBATCH --gpus=0": {"gpus": 0},
    "#SBATCH --ntasks=4 --gpus-per-task=1": {"gpus": 1, "tasks": 4},
    "#SBATCH -n 4 -N 1 --gpus-per-task=1": {"gpus": 1, "tasks": 4, "topology": NODE},
    "#SBATCH --nodes=1 --ntasks-per-node=4 --gpus-per-task=h100:1": {
        "gpus": 1, "tasks": 4, "topology": NODE, "gpu_model": "H100-80GB",
    },
    "#SBATCH --ntasks-per-node=2": {"gpus": 0, "tasks": 2, "topology": NODE},
    "#SBATCH -n 2 --ntasks-per-node=8": {"gpus": 0, "tasks": 2, "topology": NODE},
    "#SBATCH -N 1-4 -n 4": {"gpus": 0, "tasks": 4},
    "#SBATCH -N 1-1 -n 4": {"gpus": 0, "tasks": 4, "topology": NODE},
    "#SBATCH --nodes=1 --ntasks=1 --gres=gpu:2 --mem=8G": {"gpus": 2, "memory_mib": 8192},
    "#SBATCH -c 8": {"gpus": 0, "cpu_milli": 8000},
    "#SBATCH --cpus-per-task=8 --mem-per-cpu=2G": {"gpus": 0, "cpu_milli": 8000, "memory_mib": 16384},
    "#SBATCH -n 2 -c 4 --mem-per-cpu=512": {"gpus": 0, "tasks": 2, "cpu_milli": 4000, "memory_mib": 2048},
    "#SBATCH --mem=16384": {"gpus": 0, "memory_mib": 16384},
    "#SBATCH --mem=16g": {"gpus": 0, "memory_mib": 16384},
    "#SBATCH --mem=2048K": {"gpus": 0, "memory_mib": 2},
    "#SBATCH --mem=1T": {"gpus": 0, "memory_mib": 1 << 20},
    "#SBATCH --mem=4GB": {"gpus": 0, "memory_mib": 4096},
    "#SBATCH --time=90": {"gpus": 0, "time_s": 5400},
    "#SBATCH -t 90:30": {"gpus": 0, "time_s": 5430},
    "#SBATCH -t 01:30:00": {"gpus": 0, "time_s": 5400},
    "#SBATCH -t 2-12": {"gpus": 0, "time_s": 60 * 3600},
    "#SBATCH -t 1-00:30": {"gpus": 0, "time_s": 86_400 + 1800},
    "#SBATCH -t 1-02:03:04": {"gpus": 0, "time_s": 86_400 + 2 * 3600 + 3 * 60 + 4},
    "#SBATCH --time=UNLIMITED": {"gpus": 0},
    "#SBATCH --time=0": {"gpus": 0},
    "#SBATCH --array=0-3%2": {"gpus": 0, "array": [0, 1, 2, 3], "array_max_running": 2},
    "#SBATCH -a 0-10:5": {"gpus": 0, "array": [0, 5, 10]},
    "#SBATCH --array=7,1-3,2-4": {"gpus": 0, "array": [1, 2, 3, 4, 7]},
    "#SBATCH --array=001-002": {"gpus": 0, "array": [1, 2]},
    "#SBATCH -o out/%j.log -e out/%j.err": {"gpus": 0, "output_path": "out/%j.log", "error_path": "out/%j.err"},
    "#SBATCH --output=%x-%A_%a.out -J bert --array=1,2": {
        "gpus": 0, "output_path": "%x-%A_%a.out", "name": "bert", "array": [1, 2],
    },
    "#SBATCH --dependency=afterok:12:13,afterany:14": {"gpus": 0, "after": [("14", ANY), ("12", OK), ("13", OK)]},
    "#SBATCH -d after:12_3": {"gpus": 0, "after": [("12_3", AFTER)]},
    "#SBATCH --export=NONE": {"gpus": 0},
    "#SBATCH --export=ALL,EPOCHS=3,LR=1e-4": {"gpus": 0, "env": {"EPOCHS": "3", "LR": "1e-4"}},
    "#SBATCH --export=EPOCHS=3": {"gpus": 0, "env": {"EPOCHS": "3"}},
    "#GPUSHARE --gpus 0.25 --time 2h": {"gpu_milli": 250, "time_s": 7200},
    "#GPUSHARE --gpu-memory 12G": {"gpu_memory_mib": 12288},
    "#GPUSHARE --gpus 1 --model H100,L4": {"gpus": 1, "gpu_model": "H100|L4"},
    '#GPUSHARE --gpus 1 --env "A=one two" --env B=2': {"gpus": 1, "env": {"A": "one two", "B": "2"}},
    "#GPUSHARE --gpus 1 --priority 5": {"gpus": 1, "priority": 5},
    # one source wins over the other, whichever comes first
    "#GPUSHARE --gpus 0.5\n#SBATCH --gres=gpu:4 -t 10": {"gpu_milli": 500, "time_s": 600},
    "#SBATCH --gres=gpu:h100:1\n#GPUSHARE --gpu-memory 12G": {"gpu_memory_mib": 12288, "gpu_model": "H100-80GB"},
    "#SBATCH --gres=gpu:h100:4\n#GPUSHARE --model L4": {"gpus": 4, "gpu_model": "L4"},
    "#SBATCH --export=ALL,A=1\n#GPUSHARE --env A=2 --env B=3": {"gpus": 0, "env": {"A": "2", "B": "3"}},
    # what only looks like a directive
    "##SBATCH --partition=x\n# SBATCH --partition=x\n#SBATCHES -p x": {},
    "echo\n#SBATCH --partition=x": {},
    "#SBATCH": {},
    "#SBATCH # nothing": {},
}  # fmt: skip

# The lines -> the number of the one to blame, and words that a person reads.
BAD: dict[str, tuple[int, str]] = {
    "#SBATCH -J x\n#SBATCH --partition=gpu": (3, "#SBATCH --partition: gpushare has no partitions; choose cards"),
    "#SBATCH -p gpu": (2, "#SBATCH --partition: gpushare has no partitions"),
    "#SBATCH --account=proj": (2, "#GPUSHARE --tenant"),
    "#SBATCH --qos=high": (2, "#GPUSHARE --qos"),
    "#SBATCH --mail-type=END": (2, "sends no mail"),
    "#SBATCH --mail-user a@b.c": (2, "sends no mail"),
    "#SBATCH --exclusive": (2, "--gpus=N"),
    "#SBATCH -C a100": (2, "--node-label"),
    "#SBATCH --mem-per-gpu=16G": (2, "write --mem"),
    "#SBATCH --requeue": (2, "--max-retries"),
    "#SBATCH --signal=B:USR1@60": (2, "--grace"),
    "#SBATCH --no-such=1": (2, "#SBATCH --no-such: is not taken"),
    "#SBATCH -Z": (2, "#SBATCH -Z: is not taken"),
    "#SBATCH --job=x": (2, "#SBATCH --job: is not taken"),
    "#SBATCH train": (2, "'train' belongs to no option"),
    "#SBATCH --time": (2, "#SBATCH --time: there is no value"),
    "#SBATCH --time=": (2, "#SBATCH --time: there is no value"),
    "#SBATCH --time=2h": (2, "'2h' is no time; write minutes"),
    "#SBATCH --time=1:2:3:4": (2, "is no time"),
    "#SBATCH --mem=lots": (2, "'lots' is no amount of memory"),
    "#SBATCH --mem=0": (2, "all memory of a node"),
    "#SBATCH --mem=100K": (2, "not a whole number of MiB"),
    "#SBATCH --mem=1G\n#SBATCH -c 2 --mem-per-cpu=1G": (3, "exclude each other"),
    "#SBATCH --mem-per-cpu=1G": (2, "write --cpus-per-task=N, too"),
    "#SBATCH -n 2\n#SBATCH --mem=1G": (3, "for all 2 tasks"),
    "#SBATCH --gres=gpu:many:2:3": (2, "no number of GPUs"),
    "#SBATCH --gres=gpu:1,nvme:1": (2, "several resources"),
    "#SBATCH --gres=fpga:1": (2, "knows no resource 'fpga'"),
    "#SBATCH --gres=shard:4": (2, "--gpus 0.25"),
    "#SBATCH --gpus=-1": (2, "no number of GPUs"),
    "#SBATCH --gpus=0.5": (2, "no number of GPUs"),
    "#SBATCH --gpus=9999": (2, "#SBATCH --gpus: '9999': is above 1024"),
    "#SBATCH --gpus=2\n#SBATCH --gres=gpu:2": (3, "--gpus in line 2 counts the GPUs already"),
    "#SBATCH -n 4\n#SBATCH --gpus=4": (3, "write --gpus-per-task=N"),
    "#SBATCH -n 4\n#SBATCH --gres=gpu:4": (3, "write --gpus-per-task=N"),
    "#SBATCH --gres=gpu:b300:1": (2, "no card here is called 'b300'; there are H100-80GB"),
    "#SBATCH --nodes=2": (2, "places tasks and not nodes"),
    "#SBATCH -N 2-4": (2, "places tasks and not nodes"),
    "#SBATCH --nodes=one": (2, "'one' is not a whole number"),
    "#SBATCH -N 1-2 -n 4": (2, "4 tasks go to one node"),
    "#SBATCH -n 8 --ntasks-per-node=4": (2, "#SBATCH --ntasks-per-node: the scheduler chooses"),
    "#SBATCH --ntasks=0": (2, "no job of 0 tasks"),
    "#SBATCH -c=4": (2, "'=4' is not a whole number"),
    "#SBATCH -c 0": (2, "#SBATCH --cpus-per-task: '0': is zero"),
    "#SBATCH --array=5-1": (2, "the range '5-1' is empty"),
    "#SBATCH --array=1-5:0": (2, "the range '1-5:0' is empty"),
    "#SBATCH --array=0-999999999": (2, "more than 100000 indexes"),
    "#SBATCH --array=a": (2, "'a' is no index"),
    "#SBATCH --array=0-3%0": (2, "#SBATCH --array: '0': is zero"),
    "#SBATCH --output=%N.out": (2, "#SBATCH --output: '%N.out': has %N"),
    "#SBATCH -J x\n#SBATCH --error=%a.err": (3, "#SBATCH --error: '%a.err': has %a, and the job is no array"),
    "#SBATCH --dependency=singleton": (2, "'singleton' is not to be had"),
    "#SBATCH --dependency=afternotok:1": (2, "'afternotok' is not to be had"),
    "#SBATCH --dependency=afterok:1?afterok:2": (2, "any of them"),
    "#SBATCH --dependency=after:1+5": (2, "a delay"),
    "#SBATCH --dependency=afterok": (2, "names no job"),
    "#SBATCH --export=NONE,A=1": (2, "NONE stands alone"),
    "#SBATCH --export=NOT_SET_HERE": (2, "#SBATCH --export: 'NOT_SET_HERE': is not set here"),
    "#SBATCH --job-name=Train_BERT": (2, "#SBATCH --job-name: 'Train_BERT': has 'T'; accepted: 1 to 63 of"),
    "#SBATCH -J My_Job.v2": (2, "write --job-name=my-job-v2"),
    "#SBATCH -J 42": (2, "write --job-name=job-42"),
    "#SBATCH --job-name='train": (2, "no closing quotation"),
    "#SBATCH--gpus=1": (2, "write a space behind #SBATCH"),
    "#GPUSHARE --gpus 1 --gpuz 2": (2, "#GPUSHARE: No such option"),
    "#GPUSHARE --gpus": (2, "#GPUSHARE: Option '--gpus' requires an argument"),
    "#SBATCH -J x\n\n#GPUSHARE --time 2": (4, "#GPUSHARE --time: '2': has no unit"),
    "#GPUSHARE --gpus 1 train.py": (2, "'train.py' belongs to no option"),
    "#GPUSHARE --dry-run": (2, "No such option"),
    "#GPUSHARE --help": (2, "No such option"),
    "#GPUSHARE --env A": (2, "#GPUSHARE --env: 'A': has no ="),
}


def test_there_are_more_than_fifty_scripts_of_slurm() -> None:
    assert sum("#SBATCH" in lines for lines in (*GOOD, *BAD)) >= 100


@pytest.mark.parametrize("lines", GOOD)
def test_a_script_asks_for_what_its_lines_say(gpushare: Cli, cluster: FakeCluster, tmp_path: Path, lines: str) -> None:
    done = submit(gpushare, tmp_path, lines)
    assert done.code == 0, done
    wanted = GOOD[lines] or {"gpus": 1}  # the scheduler's own default, written back by the stand-in
    assert facts(cluster.seen("CreateJob")[0].job) == wanted


@pytest.mark.parametrize("lines", BAD)
def test_what_cannot_be_followed_names_its_line(
    gpushare: Cli, cluster: FakeCluster, tmp_path: Path, lines: str
) -> None:
    line, words = BAD[lines]
    done = submit(gpushare, tmp_path, lines)
    assert done.code == 2, done
    assert f"error: INVALID_FIELD: script {tmp_path}/train.sh, line {line}: " in done.err
    assert words in done.err
    assert not cluster.seen("CreateJob")


def test_all_wrong_lines_are_told_at_once(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    lines = "#SBATCH --partition=gpu --account x --nodes=2\n#SBATCH -t 2h\n#GPUSHARE --gpuz 1\n#SBATCH --job-nam=x"
    done = submit(gpushare, tmp_path, lines)
    assert done.code == 2
    told = [line.partition(", ")[2].partition(":")[0] for line in done.err.splitlines()]
    assert told == ["line 2", "line 2", "line 2", "line 3", "line 4", "line 5"]
    assert all(line.startswith("error: INVALID_FIELD: script ") for line in done.err.splitlines())
    assert "did you mean --job-name?" in done.err
    assert not cluster.seen("CreateJob")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            "# SBATCH --time=1",
            "line 2 of {} looks like a directive and is not one: '# SBATCH --time=1' (write #SBATCH at",
        ),
        (
            "##SBATCH -t 1\n#sbatch -t 1",
            "line 2 of {} looks like a directive and is not one: '##SBATCH -t 1' (write #SBATCH",
        ),
        ("  #gpushare --gpus 1", "line 2 of {} looks like a directive"),
        ("date\n#SBATCH -t 1", "line 3 of {} looks like a directive and is not one: '#SBATCH -t 1' (it stands behind"),
        ("# we used sbatch - once\n#SBATCHES", ""),
        ("#GPUSHARE --gpus 1", ""),
    ],
)
def test_what_only_looks_like_a_directive_is_noted(gpushare: Cli, tmp_path: Path, lines: str, says: str) -> None:
    done = submit(gpushare, tmp_path, lines, "--gpus", "1")
    assert done.code == 0
    assert done.err.count("looks like a directive") == (1 if says else 0)
    assert says.format(tmp_path / "train.sh") in done.err


def test_what_the_scheduler_refuses_names_the_line_too(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    field = "early_signal"
    said = f"{field} 'WINCH@10m': is no signal that a job can be sent early; accepted: USR1"
    cluster.faults["CreateJob"] = [error_of(Reason.INVALID_FIELD, said, violations=(FieldViolation(field, said),))]
    done = submit(gpushare, tmp_path, "#GPUSHARE --gpus 1 --time 1h\n#GPUSHARE --signal WINCH@10m")
    assert done.code == 1
    assert f"script {tmp_path}/train.sh, line 3: #GPUSHARE --signal" in done.err
    assert field not in done.err
    assert "request" not in done.err
    cluster.faults["CreateJob"] = [error_of(Reason.INVALID_FIELD, said, violations=(FieldViolation(field, said),))]
    assert "script" not in submit(gpushare, tmp_path, "", "--signal", "WINCH@10m").err


def test_a_script_may_say_nothing(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    done = submit(gpushare, tmp_path, "", "--gpus", "1")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        ("#SBATCH --export=ALL", {"PATH", "COLOUR"}),
        ("#SBATCH --export=NONE", set()),
        ("#SBATCH --export=COLOUR,EPOCHS=3", {"COLOUR"}),
        ("#SBATCH --export=EPOCHS=3", set()),
        ("#SBATCH -t 1", {"PATH"}),
    ],
)
def test_export_decides_what_is_taken_along(
    gpushare: Cli, cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, taken: set[str]
) -> None:
    monkeypatch.setenv("COLOUR", "red")
    assert submit(gpushare, tmp_path, lines).code == 0
    assert {"PATH", "COLOUR"} & set(cluster.seen("CreateJob")[0].job.captured_env) == taken


# -- who wins


def test_the_command_line_wins_and_what_repeats_adds_up(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    lines = (
        "#SBATCH --gres=gpu:2 --time=60 --dependency=afterok:3\n"
        "#GPUSHARE --name mine --label a=1 --label b=2 --after-ok 3 --after 4"
    )
    typed = ["--gpus", "0.5", "--label", "b=9", "--label", "c=3", "--after-any", "5", "--time", "3h"]
    done = submit(gpushare, tmp_path, lines, *typed)
    assert done.code == 0, done
    spec = cluster.seen("CreateJob")[0].job
    assert (spec.resources.gpu_milli, spec.name, spec.max_run_duration.seconds) == (500, "mine", 3 * 3600)
    assert dict(spec.labels) == {"a": "1", "b": "9", "c": "3"}
    assert sorted(each.job.rpartition("/")[2] for each in spec.after) == ["3", "4", "5"]


def test_a_note_says_what_was_taken(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    lines = "#SBATCH -J train\n#SBATCH --gres=gpu:h100:1\n#GPUSHARE --time 2h --env 'A=x y'"
    done = submit(gpushare, tmp_path, lines, "--time", "1h", "--dry-run")
    said = "--name train --gpus 1 --model H100-80GB --env 'A=x y'"
    assert f"note: 3 directives of {tmp_path}/train.sh: {said}\n" in done.err
    assert cluster.seen("CreateJob")[0].validate_only


def test_no_gpu_is_said_aloud(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    assert (
        f"1 directive of {tmp_path}/train.sh: --time 10m --gpus 0\n" in submit(gpushare, tmp_path, "#SBATCH -t 10").err
    )
    done = submit(gpushare, tmp_path, "#SBATCH -t 10", "--gpu-memory", "2G")
    assert (done.code, "--gpus" in done.err) == (0, False)


def test_words_that_only_slurm_knows_are_pointed_out(gpushare: Cli, tmp_path: Path) -> None:
    behind = "srun python train.py $SLURM_ARRAY_TASK_ID ${SLURM_TMPDIR}\n"
    done = submit(gpushare, tmp_path, "#SBATCH --array=0-1", behind=behind)
    assert "SLURM_ARRAY_TASK_ID (write GPUSHARE_ARRAY_INDEX), SLURM_TMPDIR, srun (leave it out" in done.err
    assert "srun" not in submit(gpushare, tmp_path, "#GPUSHARE --gpus 1", behind=behind).err


@pytest.mark.parametrize(("ending", "is_told"), [("\r\n", True), ("\n", False)])
def test_lines_that_end_as_on_windows_are_pointed_out(
    gpushare: Cli, tmp_path: Path, ending: str, is_told: bool
) -> None:
    (tmp_path / "job.sh").write_bytes(ending.join(["#!/bin/sh", "true", ""]).encode())
    done = gpushare("submit", "--gpus", "0", str(tmp_path / "job.sh"))
    assert (done.code, "carriage return" in done.err) == (0, is_told)


def test_directives_can_be_left_alone(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    done = submit(gpushare, tmp_path, "#SBATCH --partition=x", "--no-directives", "--gpus", "1")
    assert (done.code, done.err) == (0, "")
    assert cluster.seen("CreateJob")[0].job.script.startswith(b"#!/bin/bash\n#SBATCH")


def test_run_takes_them_too_and_fails_with_its_own_code(gpushare: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    script.write_text("#!/bin/sh\n#GPUSHARE --gpus 0.5 --tenant nlp\n")
    done = gpushare("run", str(script))
    assert (done.code, "note: 1 directive of" in done.err) == (0, True), done
    asked = cluster.seen("CreateJob")[0]
    assert (asked.parent, asked.job.resources.gpu_milli) == ("tenants/nlp", 500)
    script.write_text("#!/bin/sh\n#GPUSHARE --gpus 0.5 --output x\n")
    done = gpushare("run", "--pty", str(script))
    assert (done.code, "line 2: #GPUSHARE --output: 'x': is a file" in done.err) == (125, True), done


def test_the_documents_name_every_option_that_is_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scripts.md").read_text()
    named = page.partition("## What is refused")[0]
    for option in TAKEN:
        assert f"--{option}" in named, option


# -- whatever a file holds

WORDS = (
    *("#SBATCH ", "#GPUSHARE ", "--", "-", "=", "time", "array", "gres", "gpu:", "export", "dependency", "mem", "gpus"),
    *("nodes", "name", "env", "n", "t", "0", "1-", "999999999", ":", ",", "%", "'", '"', "\\", "\n", " ", "\0", "#"),
)
PIECES = st.sampled_from(WORDS).map(str.encode) | st.binary(max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.lists(PIECES, max_size=40).map(b"".join))
def test_any_file_is_submitted_or_refused_with_a_sentence(gpushare: Cli, tmp_path: Path, content: bytes) -> None:
    script = tmp_path / "any.sh"
    script.write_bytes(b"#!/bin/sh\n#SBATCH " + content)
    done = gpushare("submit", "--dry-run", str(script))
    assert done.code in (0, 2), done
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert all(line.startswith("error: INVALID_FIELD: ") for line in errors)
    assert bool(errors) is (done.code == 2)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=40).map(b"".join))
def test_what_is_wrong_with_a_line_is_told_of_a_line_that_is_there(content: bytes) -> None:
    script = b"#SBATCH " + content
    faults: list[DirectiveError] = []
    settings_of([each for each in directives_of(script, faults) if each.kind == "#SBATCH"], faults)
    assert all(1 <= fault.line <= script.count(b"\n") + 1 and fault.text for fault in faults)


@settings(deadline=None)
@given(st.text(alphabet="0123456789-:,%", max_size=20))
def test_an_array_of_slurm_names_the_indexes_that_its_ranges_name(text: str) -> None:
    wanted: set[int] = set()
    try:
        ((_, told),) = array(text)
    except SlurmValueError:
        return
    for part in text.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        wanted |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    found = []
    for part in told.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(wanted)


def test_neither_a_long_line_nor_many_lines_take_long() -> None:
    for script in (b"#SBATCH " + b"x" * 20_000, b"#SBATCH -J x\n" * 1000):
        wrong: list[DirectiveError] = []
        assert len(directives_of(script, wrong)) < 300
        assert [each.text for each in wrong if "more than" in each.text]
    wrong = []
    assert directives_of(b"#" * (1 << 20), wrong) == []
    assert directives_of(b"#SBATCH -J x\n" + b"\n" * 1000, wrong) == [Directive(1, "#SBATCH", ("-J", "x"))]
