"""Jobs through the API: submit, look, list, cancel, watch; who sees how much of what."""

from __future__ import annotations

from pathlib import Path

from api_cluster import api_cluster, create, refusal, run, until

from gpushare.v1 import job_pb2


def test_a_job_is_submitted_started_and_ends(tmp_path: Path) -> None:
    async def test() -> None:
        async with api_cluster(tmp_path) as cluster:
            agent = await cluster.agent("n1")
            job = await cluster.submit(argv=["sleep", "1"], env={"A": "1"}, captured_env={"B": "2", "A": "0"})
            assert job.name == "tenants/vision/jobs/1"
            start = await agent.order("start_attempt")
            assert (start.attempt_id, start.term, list(start.argv)) == ("vision.1.0.1", 1, ["sleep", "1"])
            assert dict(start.env) == {"A": "1", "B": "2"}
            assert start.gpu_milli == 250
            await agent.run(start.attempt_id)

            async def state_is(state: str) -> bool:
                found = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))
                return job_pb2.JobState.Name(found.state) == f"JOB_STATE_{state}"

            await until(lambda: state_is("RUNNING"), "running")
            await agent.finish(start.attempt_id, 3)
            await until(lambda: state_is("FAILED"), "failed")
            found = await cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name=job.name))
            assert (found.exit_code, found.reason) == (3, "EXIT_CODE")
            assert (await agent.order("forget_attempt")).attempt_id == start.attempt_id
            error = await refusal(cluster.jobs("ann").GetJob(job_pb2.GetJobRequest(name="tenants/vision/jobs/2")))
            assert error.status == "NOT_FOUND"
            assert (await cluster.jobs("ann").CreateJob(create(argv=[], script=b"x"))).jobs[0].id == "2"
            await agent.close()

    run(test)
