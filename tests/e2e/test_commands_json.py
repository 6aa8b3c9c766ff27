"""`-o json` of every command: one document that is the API's message, field by field, by the API's own names."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from live_cluster import until
from shared_cluster import World

from gpushare.client import messages as m
from gpushare.client.spec import job_spec


class Jobs(NamedTuple):
    """A job in each state that matters: their ids."""

    running: str
    waiting: str
    ended: str
    array: str


@pytest.fixture(scope="module")
def jobs(world: World) -> Iterator[Jobs]:
    async def make() -> Jobs:
        client = world.people["ann"]

        async def submit(*argv: str, **options: Any) -> m.CreateJobResponse:
            return await client.create_job(job_spec(argv, working_directory="/", **options))

        running = (await submit("sleep", "600", gpus="0.25", model="H100-80GB", name="json-runs")).jobs[0]
        waiting = (await submit("true", gpus="0.5", fence="hard")).jobs[0]
        ended = (await submit("/bin/echo", "hello", gpus="0")).jobs[0]
        array = (await submit("true", gpus="0", array="0-2")).jobs[0].array_id
        await client.wait_jobs([ended.name, *(f"tenants/team/jobs/{array}_{index}" for index in range(3))])
        await world.cluster.in_state([running.name], "RUNNING")

        async def explained() -> bool:
            return bool((await client.get_job(waiting.name)).wait.reason)

        await until(explained, "the wait has a reason")
        return Jobs(running.id, waiting.id, ended.id, array)

    made = world.do(make())
    yield made
    world.do(world.end_jobs())


def listing(key: str, kind: Callable[[], Message]) -> Callable[[Any], list[Message]]:
    """{key: [message...]} and nothing else."""

    def parse(document: Any) -> list[Message]:
        assert list(document) == [key]
        return [strict(each, kind) for each in document[key]]

    return parse


def one(kind: Callable[[], Message]) -> Callable[[Any], list[Message]]:
    return lambda document: [strict(document, kind)]


def strict(document: Any, kind: Callable[[], Message]) -> Message:
    """Parsed, where every key is a field's JSON name: a field's other name would be accepted, too."""
    parsed = ParseDict(document, kind())
    known = {field.json_name for field in parsed.DESCRIPTOR.fields}
    assert set(document) <= known, set(document) - known
    return parsed


COMMANDS: dict[str, tuple[Callable[[Jobs], list[str]], Callable[[Any], list[Message]]]] = {
    "jobs": (lambda j: ["jobs"], listing("jobs", m.Job)),
    "jobs -a": (lambda j: ["jobs", "-a"], listing("jobs", m.Job)),
    "jobs --state": (lambda j: ["jobs", "--state", "SUCCEEDED"], listing("jobs", m.Job)),
    "job that runs": (lambda j: ["job", j.running], one(m.Job)),
    "job by name": (lambda j: ["job", "json-runs"], one(m.Job)),
    "job that waits": (lambda j: ["job", j.waiting], one(m.Job)),
    "job that ended": (lambda j: ["job", j.ended], one(m.Job)),
    "job of an array": (lambda j: ["job", j.array], listing("jobs", m.Job)),
    "explain": (lambda j: ["explain", j.waiting], one(m.JobExplanation)),
    "explain what runs": (lambda j: ["explain", j.running], one(m.JobExplanation)),
    "explain an array": (lambda j: ["explain", j.array], listing("explanations", m.JobExplanation)),
    "wait": (lambda j: ["wait", j.ended], listing("jobs", m.Job)),
    "wait for an array": (lambda j: ["wait", j.array], listing("jobs", m.Job)),
    "cancel": (lambda j: ["cancel", j.ended], listing("jobs", m.Job)),
    "nodes": (lambda j: ["nodes"], listing("nodes", m.Node)),
    "usage": (lambda j: ["usage", "--by", "job"], one(m.GetUsageResponse)),
}
OF_ADMINS: dict[str, tuple[list[str], Callable[[Any], list[Message]]]] = {
    "audit": (["audit"], listing("events", m.AuditEvent)),
    "audit of a kind": (["audit", "--kind", "JobsCreated", "--limit", "2"], listing("events", m.AuditEvent)),
    "audit of denials": (["audit", "--denials"], listing("events", m.AuditEvent)),
    "tenant list": (["tenant", "list"], listing("tenants", m.Tenant)),
    "tenant show": (["tenant", "show", "team"], one(m.Tenant)),
    "tenant set": (["tenant", "set", "team", "--display-name", "Team"], one(m.Tenant)),
    "token list": (["token", "list"], listing("tokens", m.Token)),
    "node cordon": (["node", "cordon", "n2"], one(m.Node)),
    "node drain": (["node", "drain", "n2"], one(m.Node)),
    "node uncordon": (["node", "uncordon", "n2"], one(m.Node)),
    "node join-token": (["node", "join-token", "n9"], one(m.CreateJoinTokenResponse)),
    "usage by user": (["usage", "--by", "user"], one(m.GetUsageResponse)),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_what_a_user_asks_for_as_json_is_the_apis_message(world: World, jobs: Jobs, what: str) -> None:
    words, parse = COMMANDS[what]
    done = world.cli(*words(jobs), "-o", "json")
    assert (done.code, done.err) == (0, "")
    assert parse(done.json), "an empty answer proves nothing"


@pytest.mark.parametrize("what", OF_ADMINS)
def test_what_an_admin_asks_for_as_json_is_the_apis_message(world: World, jobs: Jobs, what: str) -> None:
    words, parse = OF_ADMINS[what]
    if what == "audit of denials":
        assert world.cli("audit", who="ann").code == 1
        world.do(until(lambda: _denials(world), "the denial is written"))
    done = world.cli(*words, "-o", "json", who="root")
    assert (done.code, done.err) == (0, "")
    assert parse(done.json)


async def _denials(world: World) -> bool:
    return bool([event async for event in world.cluster.admin.list_audit_events(denials=True)])


def test_cards_are_the_apis_message_and_the_name_of_their_node(world: World, jobs: Jobs) -> None:
    document = world.cli("gpus", "-o", "json").json
    assert list(document) == ["gpus"]
    cards = [dict(card) for card in document["gpus"]]
    assert {card.pop("node") for card in cards} == {"nodes/n1", "nodes/n2", "nodes/n3"}
    assert len({strict(card, m.Gpu).uuid for card in cards}) == len(cards) == 14  # type: ignore[attr-defined]


def test_a_new_token_is_told_once_with_its_line_to_log_in(world: World) -> None:
    done = world.cli("token", "create", "zoe", "--tenant", "team", "-o", "json", who="root")
    (made,) = one(m.CreateTokenResponse)(done.json)
    assert made.secret  # type: ignore[attr-defined]
    revoked = world.cli("token", "revoke", made.token.name, "-o", "json", who="root")  # type: ignore[attr-defined]
    assert one(m.Token)(revoked.json)


def test_a_new_tenant_is_the_apis_message(world: World) -> None:
    done = world.cli("tenant", "create", "fresh", "--limit", "2.5", "-o", "json", who="root")
    (made,) = one(m.Tenant)(done.json)
    assert made.limit_milli == 2500  # type: ignore[attr-defined]
    assert world.cli("tenant", "delete", "fresh", who="root").code == 0


def test_logs_as_json_are_the_apis_chunks(world: World, jobs: Jobs) -> None:
    done = world.cli_process("logs", jobs.ended, "-o", "json")
    assert done.code == 0
    data = b""
    for chunk in json.loads(done.out):
        # Beside the chunk there is which stream it is of, in the words of the request, and its bytes as text.
        assert chunk.pop("text").encode() == base64.b64decode(chunk["data"])
        known = {field.json_name for field in m.StreamLogsResponse.DESCRIPTOR.fields}
        asked = {key: chunk.pop(key) for key in set(chunk) - known}
        assert strict(asked, m.StreamLogsRequest).name == f"tenants/team/jobs/{jobs.ended}"  # type: ignore[attr-defined]
        data += strict(chunk, m.StreamLogsResponse).data  # type: ignore[attr-defined]
    assert data == b"hello\n"


@pytest.mark.parametrize("words", [["jobs"], ["job", "team/1"], ["nodes"], ["audit"]])
def test_a_refusal_is_a_line_and_no_document(world: World, words: list[str]) -> None:
    done = world.cli_process("--token", "gps_wrong", *words, "-o", "json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: UNAUTHENTICATED: ")
    assert len(done.err.splitlines()) == 1
