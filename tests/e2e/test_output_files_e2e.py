"""Output files and job scripts through the whole stack: each child of an array, each task of a gang writes its own."""

from __future__ import annotations

import getpass

from upcluster import UpCluster


def test_each_child_of_an_array_writes_the_file_of_its_id_and_index(up_cluster: UpCluster) -> None:
    work = up_cluster.home / "array"
    (work / "logs").mkdir(parents=True)
    command = ["--array", "0-2", "--output", "logs/%A-%a-%j.out", "--", "sh", "-c", "echo index $GPUSHARE_ARRAY_INDEX"]
    array = up_cluster.ok("submit", "--gpus", "0", "--parsable", *command, cwd=work).out.strip()
    up_cluster.ok("wait", array)
    found = {path.name: path.read_text() for path in (work / "logs").iterdir()}
    assert found == {f"{array}-{index}-{array}_{index}.out": f"index {index}\n" for index in range(3)}
    told = up_cluster.ok("logs", f"{array}_1")
    assert told.out == ""
    assert f"{work}/logs/{array}-1-{array}_1.out" in told.err


def test_a_script_written_for_slurm_runs_as_it_says(up_cluster: UpCluster) -> None:
    work = up_cluster.home / "slurm"
    (work / "logs").mkdir(parents=True)
    (work / "train.sh").write_text(
        "#!/bin/sh\n"
        "#SBATCH --job-name=train --gres=gpu:h100:1\n"
        "#SBATCH --array=1-5:2%2 --time=0:10:00\n"
        "#SBATCH --output=logs/%x-%A_%a.out   # one file each\n"
        "#SBATCH --export=EPOCHS=3\n"
        "\n"
        "echo $1 $EPOCHS $GPUSHARE_ARRAY_INDEX\n"
        "#SBATCH --partition=ignored\n"
    )
    done = up_cluster.ok("submit", "--parsable", "train.sh", "epochs", cwd=work)
    array = done.out.strip()
    assert "note: 4 directives of train.sh: " in done.err
    up_cluster.ok("wait", array)
    found = {path.name: path.read_text() for path in (work / "logs").iterdir()}
    assert found == {f"train-{array}_{index}.out": f"epochs 3 {index}\n" for index in (1, 3, 5)}
    spec = up_cluster.job(f"{array}_3")["spec"]
    assert (spec["resources"]["gpuModel"], spec["maxRunDuration"]) == ("H100-80GB", "600s")


def test_tasks_of_a_gang_share_a_file_unless_its_name_tells_them_apart(up_cluster: UpCluster) -> None:
    work = up_cluster.home / "gang"
    work.mkdir()
    command = ["--name", "both", "--output", "%x.out", "--error", "%x-%u-%t.err", "--", "sh", "-c"]
    script = "echo $GPUSHARE_TASK_INDEX; echo error $GPUSHARE_TASK_INDEX >&2"
    done = up_cluster.cli("run", "--gpus", "0", "--tasks", "2", *command, script, cwd=work)
    assert (done.code, done.out) == (0, ""), done
    assert sorted((work / "both.out").read_text().split()) == ["0", "1"]
    for task in (0, 1):
        assert (work / f"both-{getpass.getuser()}-{task}.err").read_text() == f"error {task}\n"


def test_a_file_that_cannot_be_opened_fails_the_job_and_says_which(up_cluster: UpCluster) -> None:
    done = up_cluster.cli("run", "--gpus", "0", "--output", "/no/such/directory/%j.out", "--", "true")
    assert done.code == 126, done
    assert "FAILED: EXEC" in done.err
    assert "/no/such/directory/" in done.err
    assert "make it first" in done.err
