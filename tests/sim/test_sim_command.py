"""`gpushare simulate` as a person types it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from traces_made import write_trace

from gpushare.cli import main as cli
from gpushare.sim import placements, traces
from gpushare.sim.checkers import violations

NODES = "".join(f"n{n},16000,65536,4,T4\n" for n in range(4))
JOBS = "".join(f"j{n},{n / 4},{500 * (n % 3)},64,{min(1, n % 5)},{(n % 4 + 1) * 250},,{n % 7}.5\n" for n in range(80))


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["simulate", *map(str, words)])
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_a_trace_gives_placements_and_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS)
    out = tmp_path / "placements.csv"
    code, shown, err = typed(capsys, "--nodes", nodes, "--jobs", jobs, "--out", out, "--summary", "json")
    assert (code, err) == (0, "")
    summary = json.loads(shown)
    rows = placements.read(out)
    assert violations(traces.read_nodes(nodes), traces.read_jobs(jobs), rows) == []
    assert summary["placed"] == sum(row.start_ms is not None for row in rows) == summary["jobs"] == 80
    assert set(summary["wait_s"]) == set(summary["jct_s"]) == {"count", "mean", "p50", "p95", "p99"}
    for figure in ("allocation", "fragmentation", "fairness"):
        assert 0 <= summary[figure] <= 1
    assert summary["preemptions"] == 0
    assert summary["decisions_per_second"] > 0


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS)
    written = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.csv"
        assert typed(capsys, "--nodes", nodes, "--jobs", jobs, "--out", out, "--seed", seed)[0] == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


def test_weights_are_those_of_the_policy_and_the_usual_ones_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = "".join(f"j{n},{n},{500 * (n % 3)},64,1,{(n % 9 + 1) * 100},,{20 + n % 7 * 9}\n" for n in range(80))
    files = write_trace(tmp_path, NODES, jobs)
    drawn = ("--departures", "1.1", "--arrivals", "900")
    written = []
    for number, words in enumerate(((), ("average_part=0.8", "loads=1.02,1.1,1.2,1.3"), ("size_bonus_milli=10000",))):
        out = tmp_path / f"{number}.csv"
        flags = [flag for word in words for flag in ("--weight", word)]
        assert typed(capsys, "--nodes", files[0], "--jobs", files[1], *drawn, "--out", out, *flags)[0] == 0
        written.append(out.read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--weight", "average=1"], "average: there is no such key; did you mean average_part?"),
        (["--weight", "average_part=2"], "average_part: '2' is not from 0 to 1"),
        (["--weight", "average_part"], "accepted: K=V"),
        (["--weight", "average_part=1", "--weight", "average_part=1"], "each key once"),
        (["--policy", "spread", "--weight", "x=1"], "policy spread has no weights"),
    ],
)
def test_a_weight_that_is_none_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS)
    code, shown, err = typed(capsys, "--nodes", nodes, "--jobs", jobs, *words)
    assert (code, shown) == (2, "")
    assert why in err


@pytest.mark.parametrize("words", [["--once"], ["--inflate", "1.5"], ["--departures", "1.2", "--arrivals", "300"]])
def test_the_ways_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS)
    code, shown, _ = typed(capsys, "--nodes", nodes, "--jobs", jobs, *words, "--summary", "json")
    summary = json.loads(shown)
    assert code == 0
    if words[0] == "--inflate":
        assert summary["allocation"] == summary["allocation_at_full_demand"] > 0.8
        assert summary["allocation_final"] >= summary["allocation"]
    elif words[0] == "--departures":
        assert summary["jobs"] == 300
        assert summary["allocation"] == summary["allocation_tail"] > 0.5


def test_the_public_trace_is_found_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = typed(capsys, "--trace-format", "openb", "--inflate", "1.3")
    assert code == 2
    assert "openb_node_list_gpu_node.csv" in err
    Path("openb_node_list_gpu_node.csv").write_text("sn,cpu_milli,memory_mib,gpu,model\nn,64000,262144,2,P100\n")
    Path("openb_pod_list_default.csv").write_text(
        "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"
        "p,1000,0,1,500,,LS,Running,0,10,0\n"
    )
    code, shown, _ = typed(capsys, "--trace-format", "openb", "--inflate", "1.3", "--summary", "json")
    assert code == 0
    assert (json.loads(shown)["jobs"], json.loads(shown)["allocation"]) == (6, 1.0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--policy", "worst"], "best_fit"),
        (["--seed", "-1"], "--seed"),
        (["--inflate", "0"], "1.3"),
        (["--inflate", "nan"], "1.3"),
        (["--inflate", "1", "--departures", "1"], "exclude"),
        (["--arrivals", "5"], "--departures"),
        (["--out", "missing/placements.csv"], "directory"),
        (["--jobs", "missing.csv"], "missing.csv"),
        (["--summary", "xml"], "json"),
        (["--trace-format", "openb", "--tenants", "nodes.csv"], "--tenants"),
    ],
)
def test_usage_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path, NODES, JOBS)
    code, shown, err = typed(capsys, "--out", "out.csv", *words)
    assert (code, shown) == (2, "")
    assert err.startswith("error: INVALID_FIELD: ")
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "out.csv").exists()


def test_bad_content_names_its_place_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS + "last,0,1,1,1,1001,,\n")
    out = tmp_path / "placements.csv"
    out.write_text("older")
    code, shown, err = typed(capsys, "--nodes", nodes, "--jobs", jobs, "--out", out)
    assert (code, shown) == (1, "")
    assert err.startswith("error: ")
    assert f"{jobs}: line 82, column 6 (gpu_milli): '1001' is out of range" in err
    assert out.read_text() == "older"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["jobs.csv", "nodes.csv", "placements.csv"]


def test_a_list_without_gpus_cannot_be_inflated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, jobs = write_trace(tmp_path, "c,1000,1000,0,\n", "j,0,1,1,0,0,,\n")
    code, _, err = typed(capsys, "--nodes", nodes, "--jobs", jobs, "--inflate", "1.3")
    assert code == 1
    assert "no node has a GPU" in err


def test_the_table_names_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS)
    _, shown, _ = typed(capsys, "--nodes", nodes, "--jobs", jobs)
    for word in ("allocation", "fragmentation", "wait", "JCT", "fairness", "preemptions", "decisions/s", "placed"):
        assert word in shown


def test_a_terminal_sees_progress_and_a_pipe_does_not(tmp_path: Path) -> None:
    nodes, jobs = write_trace(tmp_path, NODES, JOBS)
    command = [sys.executable, "-m", "gpushare.cli.main", "simulate", "--nodes", str(nodes), "--jobs", str(jobs)]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True, env=environment)
        os.set_blocking(ours, False)
        seen = os.read(ours, 65536).decode(errors="replace")
    finally:
        os.close(ours)
        os.close(theirs)
    assert "simulating" in seen
    assert b"simulating" not in done.stdout
