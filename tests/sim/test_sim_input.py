"""A file that cannot be used is refused with its line and column; everything that can be is read exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from traces_made import JOBS_HEADER, NODES_HEADER

from gpushare.sim import tables, traces
from gpushare.sim.tables import TableError
from gpushare.sim.traces import TraceJob, TraceNode, TraceTenant

GOOD_JOB = "j,0,1000,512,1,500,,10\n"

# (the file's text, what the error must say)
BAD_JOBS = [
    ("", ["is empty", "job_id,arrival"]),
    (JOBS_HEADER, ["no jobs"]),
    (JOBS_HEADER + "j,-1,1,1,1,500,,\n", ["line 2", "column 2 (arrival)", "'-1'", "negative", "accepted"]),
    (JOBS_HEADER + "j,nan,1,1,1,500,,\n", ["column 2 (arrival)", "'nan'", "no number of seconds"]),
    (JOBS_HEADER + "j,inf,1,1,1,500,,\n", ["column 2 (arrival)", "'inf'"]),
    (JOBS_HEADER + "j,1e30,1,1,1,500,,\n", ["column 2 (arrival)", "out of range"]),
    (JOBS_HEADER + "j,,1,1,1,500,,\n", ["column 2 (arrival)", "is empty"]),
    (JOBS_HEADER + "j,0,-5,1,1,500,,\n", ["column 3 (cpu_milli)", "'-5'", "negative", "0 to 2147483647"]),
    (JOBS_HEADER + "j,0,1.5,1,1,500,,\n", ["column 3 (cpu_milli)", "no whole number"]),
    (JOBS_HEADER + "j,0,1_000,1,1,500,,\n", ["column 3 (cpu_milli)", "no whole number"]),
    (JOBS_HEADER + "j,0,١,1,1,500,,\n", ["column 3 (cpu_milli)", "no whole number"]),
    (JOBS_HEADER + "j,0,NaN,1,1,500,,\n", ["column 3 (cpu_milli)", "'NaN'"]),
    (JOBS_HEADER + f"j,0,{'9' * 5000},1,1,500,,\n", ["column 3 (cpu_milli)", "out of range"]),
    (JOBS_HEADER + "j,0,1,2147483648,1,500,,\n", ["column 4 (memory_mib)", "out of range"]),
    (JOBS_HEADER + "j,0,1,1,-1,500,,\n", ["column 5 (num_gpu)", "negative"]),
    (JOBS_HEADER + "j,0,1,1,1,1001,,\n", ["column 6 (gpu_milli)", "'1001'", "0 to 1000"]),
    (JOBS_HEADER + "j,0,1,1,1,0,,\n", ["line 2, column 6 (gpu_milli)", "1 to 1000"]),
    (JOBS_HEADER + "j,0,1,1,1,500,A||B,\n", ["column 7 (gpu_spec)", "empty model"]),
    (JOBS_HEADER + "j,0,1,1,1,500,,-3\n", ["column 8 (duration)", "negative"]),
    (JOBS_HEADER + GOOD_JOB + "j,1,1,1,1,500,,\n", ["line 3, column 1 (job_id)", "'j'", "on line 2"]),
    (JOBS_HEADER + ",1,1,1,1,500,,\n", ["column 1 (job_id)", "is empty"]),
    (JOBS_HEADER + "a\x1b[2J,1,1,1,1,500,,\n", ["column 1 (job_id)", "U+001B"]),
    (JOBS_HEADER + "\n\n" + GOOD_JOB + "k,0,1,1\n", ["line 5, column 5", "4 columns", "accepted: 8"]),
    (JOBS_HEADER + "j,0,1,1,1,500,,,9\n", ["line 2, column 9", "9 columns"]),
    (JOBS_HEADER + 'j,0,"1\n', ["line 2", "CSV"]),
    (JOBS_HEADER.replace("arrival", "arival"), ["line 1, column 2", "'arival'", "accepted: job_id"]),
    (JOBS_HEADER.replace("arrival", "job_id"), ["line 1, column 2", "job_id", "column 1"]),
    ("job_id,arrival\na,1\n", ["line 1", "cpu_milli"]),
    (JOBS_HEADER.replace(",", ";"), ["line 1, column 1", "accepted"]),
    (JOBS_HEADER.strip() + ",tenant\n" + GOOD_JOB.strip() + ",No Name\n", ["column 9 (tenant)", "a-z"]),
    (JOBS_HEADER.strip() + ",qos\n" + GOOD_JOB.strip() + ",BE\n", ["column 9 (qos)", "guaranteed, burst"]),
    (JOBS_HEADER.strip() + ",tasks\n" + GOOD_JOB.strip() + ",0\n", ["column 9 (tasks)", "1 to 1024"]),
    (JOBS_HEADER.strip() + ",max_run\n" + GOOD_JOB.strip() + ",0\n", ["column 9 (max_run)", "zero"]),
]

BAD_NODES = [
    (NODES_HEADER, ["no nodes"]),
    (NODES_HEADER + "a,1000,1000,1,\n", ["line 2, column 5 (model)", "is empty"]),
    (NODES_HEADER + "a,1000,1000,1,A|B\n", ["column 5 (model)", "|"]),
    (NODES_HEADER + "a,0,1000,1,T4\n", ["column 2 (cpu_milli)", "1 to"]),
    (NODES_HEADER + "a,1000,1000,4000,T4\n", ["column 4 (gpu_count)", "0 to 1024"]),
    (NODES_HEADER + "unplaced,1000,1000,1,T4\n", ["column 1 (node)", "unplaced"]),
    (NODES_HEADER + "a,1,1,0,\nb,1,1,0,\na,1,1,0,\n", ["line 4, column 1 (node)", "on line 2"]),
]


@pytest.mark.parametrize(("text", "says"), BAD_JOBS, ids=range(len(BAD_JOBS)))
def test_a_bad_jobs_file_is_refused_where_it_is_bad(tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(text, newline="")
    with pytest.raises(TableError) as caught:
        traces.read_jobs(path)
    for part in [str(path), *says]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(("text", "says"), BAD_NODES, ids=range(len(BAD_NODES)))
def test_a_bad_nodes_file_is_refused_where_it_is_bad(tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "nodes.csv"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        traces.read_nodes(path)
    for part in [str(path), *says]:
        assert part in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfej\x00o\x00", b"job_id,arrival\nj,0,\xe9t\xe9\n"])
def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "jobs.csv"
    path.write_bytes(data)
    with pytest.raises(TableError, match=r"line \d+, column \d+: byte 0x\w\w is not UTF-8"):
        traces.read_jobs(path)


def test_a_byte_order_mark_windows_line_ends_and_any_order_of_columns_are_read(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    text = "arrival,job_id,num_gpu,gpu_milli,cpu_milli,memory_mib,duration,gpu_spec\r\n1.5,é,1,250,0,7,.25,B|A|B\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert traces.read_jobs(path) == [TraceJob("é", 1500, 0, 7, 1, 250, ("A", "B"), 250)]


def test_the_meaning_of_the_gpu_columns(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    rows = "cpu,0,1,1,0,0,,\nshare,0,1,1,1,999,,\none,0,1,1,1,1000,,\nmany,0,1,1,4,1000,,0\n"
    path.write_text(JOBS_HEADER + rows)
    cpu, share, one, many = traces.read_jobs(path)
    assert (cpu.is_share, cpu.demand_milli, cpu.duration_ms) == (False, 0, None)
    assert (share.is_share, share.demand_milli) == (True, 999)
    assert (one.is_share, one.demand_milli) == (False, 1000)
    assert (many.is_share, many.demand_milli, many.duration_ms) == (False, 4000, 0)


def test_times_are_rounded_up_so_that_nothing_overlaps_that_did_not() -> None:
    texts = ["0", "0.0001", "1.0005", "1e3", "9999999999", "2.", "1.5E-1"]
    assert [tables.seconds(text) for text in texts] == [0, 1, 1001, 1_000_000, 9_999_999_999_000, 2000, 150]


def test_extra_columns_and_tenants(tmp_path: Path) -> None:
    jobs, tenants = tmp_path / "jobs.csv", tmp_path / "tenants.csv"
    extra = "tenant,user,priority,tasks,qos,max_run"
    jobs.write_text(
        f"{JOBS_HEADER.strip()},{extra}\na{GOOD_JOB.strip()},ml,ann,-3,4,guaranteed,60\nb{GOOD_JOB.strip()},,,,,,\n"
    )
    tenants.write_text("tenant,weight,guaranteed_milli,limit_milli\nml,3,500,\ndefault,,,2000\n")
    known = traces.read_tenants(tenants)
    assert known == [TraceTenant("ml", 3, 500, None), TraceTenant("default", 1, 0, 2000)]
    first, second = traces.read_jobs(jobs, known)
    assert (first.tenant, first.user, first.priority, first.tasks, first.qos) == ("ml", "ann", -3, 4, "guaranteed")
    assert (first.max_run_ms, first.demand_milli) == (60_000, 2000)
    assert (second.tenant, second.tasks, second.max_run_ms) == ("default", 1, None)
    with pytest.raises(TableError, match=r"line 2, column 9 \(tenant\): 'ml' is not in the tenants' file"):
        traces.read_jobs(jobs, known[1:])
    tenants.write_text("tenant,guaranteed_milli,limit_milli\nml,500,499\n")
    with pytest.raises(TableError, match=r"line 2, column 3 \(limit_milli\)"):
        traces.read_tenants(tenants)


def test_the_public_columns(tmp_path: Path) -> None:
    nodes, jobs = tmp_path / "n.csv", tmp_path / "j.csv"
    nodes.write_text("sn,cpu_milli,memory_mib,gpu,model\nn-1,64000,262144,2,P100\nn-2,8000,1024,0,\n")
    columns = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,"
    columns += "creation_time,deletion_time,scheduled_time\n"
    jobs.write_text(columns + "p1,1000,0,1,460,V100M16|V100M32,LS,Running,5,105,25\np2,1,1,0,0,,BE,Pending,9,10,\n")
    assert traces.read_openb_nodes(nodes) == [
        TraceNode("n-1", 64000, 262144, 2, "P100"),
        TraceNode("n-2", 8000, 1024, 0, ""),
    ]
    assert traces.read_openb_jobs(jobs) == [
        TraceJob("p1", 5000, 1000, 0, 1, 460, ("V100M16", "V100M32"), 80_000),
        TraceJob("p2", 9000, 1, 1, 0, 0, (), 1000),
    ]
    jobs.write_text(columns + "p1,1000,0,1,460,,LS,Running,5,105,125\n")
    with pytest.raises(TableError, match=r"column 10 \(deletion_time\)"):
        traces.read_openb_jobs(jobs)
