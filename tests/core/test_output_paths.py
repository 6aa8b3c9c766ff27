"""Files for output: which path a pattern means, and that nobody is left before an empty log without a word."""

from __future__ import annotations

import pytest
from cli_calls import Cli
from cli_fake import FakeCluster

from gpushare.names import TextError
from gpushare.outputpath import check_output_path, expand_output_path
from gpushare.v1 import job_pb2 as j


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("train.out", "train.out"),
        ("/logs/%x-%j.out", "/logs/bert-42_3.out"),
        ("%A/%a", "42/3"),
        ("%t-of-%u", "7-of-ada"),
        ("100%%%j", "100%42_3"),
        ("%%j", "%j"),
    ],
)
def test_what_a_pattern_means_for_one_task(pattern: str, path: str) -> None:
    assert check_output_path(pattern, "output", is_array=True, has_name=True) == pattern
    assert expand_output_path(pattern, job_id="42_3", task=7, user="ada", name="bert") == path


def test_outside_an_array_the_arrays_id_is_the_jobs() -> None:
    assert expand_output_path("%A-%j", job_id="42", task=0, user="ada", name="") == "42-42"


@pytest.mark.parametrize("pattern", ["%", "%N", "%4j", "%J", "a/", "..", "", "a\nb", "%\n"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(TextError, match="output"):
        check_output_path(pattern, "output", is_array=True, has_name=True)


def test_a_bad_pattern_is_refused_before_anything_is_sent(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare("submit", "--gpus", "0", "--output", "%a.out", "--", "x")
    assert (done.code, "--output '%a.out': has %a, and the job is no array" in done.err) == (2, True), done
    done = gpushare("run", "--gpus", "0", "--pty", "--error", "x", "--", "x")
    assert (done.code, "--error 'x': is a file, and --pty asks for a terminal" in done.err) == (125, True), done
    assert not cluster.seen("CreateJob")


def test_submit_sends_the_patterns_and_job_shows_them(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare("submit", "--gpus", "0", "--array", "0-1", "--output", "%A_%a.out", "--error", "/e/%j", "--", "x")
    assert done.code == 0, done
    spec = cluster.seen("CreateJob")[0].job
    assert (spec.output_path, spec.error_path) == ("%A_%a.out", "/e/%j")
    shown = gpushare("job", "1_0").out
    assert "%A_%a.out" in shown
    assert "/e/%j" in shown


def test_run_and_logs_say_where_the_output_is(gpushare: Cli, cluster: FakeCluster) -> None:
    done = gpushare("run", "--gpus", "0", "--chdir", "/data", "--output", "%j-%u.out", "--", "x")
    note = "note: stdout and stderr of job 1 go to node-1:/data/1-ada.out"
    assert note in done.err.splitlines()
    assert note in gpushare("logs", "1").err.splitlines()
    assert gpushare("logs", "-f", "1").err.splitlines().count(note) == 1


def test_each_stream_and_each_task_is_told_of(gpushare: Cli, cluster: FakeCluster) -> None:
    job = cluster.add("4", spec=j.JobSpec(tasks=2, working_directory="/w", output_path="%t.o", error_path="/e/%t"))
    cluster.start(job, 0)
    cluster.start(job, 1)
    said = gpushare("logs", "4").err.splitlines()
    assert [line for line in said if line.startswith("note:")] == [
        f"note: stdout of job 4, task {task}, goes to node-1:/w/{task}.o, stderr to node-1:/e/{task}" for task in (0, 1)
    ]
    alone = cluster.add("5", spec=j.JobSpec(working_directory="/w", error_path="e"))
    cluster.start(alone)
    assert "note: stderr of job 5 goes to node-1:/w/e" in gpushare("logs", "5").err.splitlines()
    assert gpushare("logs", "--attempt", "2", "5").err.count("goes to its node:/w/e") == 1
