"""A gRPC server that does nothing, with the TLS and the limits of the scheduler's: what a call costs by itself.

Run by `references`: python -m benchmarks.echo PKI_DIR. Prints its address and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import grpc.aio

from gpushare import rpc
from gpushare.scheduler.pki import PkiLeaf

LONGEST_RUN_S = 600


async def _nothing(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return b""


async def serve(pki_dir: Path) -> None:
    server = rpc.aio_server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_nothing)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmarks.Echo", {"Nothing": handler}),))
    address = rpc.bind(server, "127.0.0.1:0", PkiLeaf(pki_dir, "127.0.0.1"))
    await server.start()
    print(address, flush=True)
    await server.wait_for_termination(LONGEST_RUN_S)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
