"""The agent's question to the scheduler: a token for a person of this host.

Imports grpc and protobuf. A connection of its own for each question: people log in twice a day, and whatever happens to
it, the session and its leases do not notice.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from gpushare.errors import from_rpc_error
from gpushare.join import encode_join
from gpushare.rpc import aio_channel
from gpushare.v1 import agent_pb2, agent_pb2_grpc
from gpushare_agent.logins import Issue, Issued
from gpushare_agent.unixuser import Person

# Within the time that a person at the socket has.
TIMEOUT_S = 4.0


def issuing(address: str, ca_pem: str, token: str) -> Issue:
    """Asks the scheduler at `address` with the agent's own token. Raises GpushareError."""

    async def issue(person: Person, tenant: str) -> Issued:
        request = agent_pb2.IssueLoginTokenRequest(unix_user=person.name, groups=person.groups, tenant=tenant)
        async with aio_channel(address, ca_pem=ca_pem, token=token) as channel:
            stub: Any = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                answer = await stub.IssueLoginToken(request, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as err:
                raise from_rpc_error(err, address) from err
        # What this host reaches the scheduler by, its people do, too.
        join = encode_join(address, answer.secret, ca_pem)
        return Issued(join, answer.user, answer.tenant, answer.ttl.seconds)

    return issue
