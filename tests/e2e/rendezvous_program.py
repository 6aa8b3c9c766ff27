"""A task of a gang as `torchrun`-style programs are: it knows its rank by the environment alone, meets the others at
MASTER_ADDR:MASTER_PORT, and takes part in one all-reduce of the ranks.

Arguments: a directory, and a file. What it was told and what came out is left in the directory as
ROUND-RANK.json; then it waits until the file is there and ends with 0. The standard library alone.
"""

import json
import os
import socket
import sys
import time

PATIENCE_S = 60.0
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_WORLD_SIZE", "MASTER_PORT")


def line_of(connection: socket.socket) -> int:
    with connection.makefile("rb") as stream:
        return int(stream.readline())


def lead(host: str, port: int, world_size: int) -> int:
    """Rank 0: hears every other rank, and tells all of them the sum."""
    with socket.create_server((host, port), backlog=world_size) as listener:
        listener.settimeout(PATIENCE_S)
        others = [listener.accept()[0] for _ in range(world_size - 1)]
        ranks = sorted(line_of(other) for other in others)
        assert ranks == list(range(1, world_size)), ranks
        for other in others:
            other.sendall(b"%d\n" % sum(ranks))
            other.close()
        return sum(ranks)


def follow(host: str, port: int, rank: int) -> int:
    """Every other rank: tells its own, hears the sum."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=PATIENCE_S) as leader:
                leader.sendall(b"%d\n" % rank)
                return line_of(leader)
        except ConnectionRefusedError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.02)


def main() -> int:
    directory, gate = sys.argv[1:]
    told = {name: int(os.environ[name]) for name in NAMES}
    attempt = int(os.environ["GPUSHARE_ATTEMPT"])
    rank, port, host = told["RANK"], told["MASTER_PORT"], os.environ["MASTER_ADDR"]
    if os.environ.get("LATE_ONES_JOIN_ALONE") and attempt > 1:
        total = -1
    else:
        total = lead(host, port, told["WORLD_SIZE"]) if rank == 0 else follow(host, port, rank)
    known = {**told, "total": total, "pid": os.getpid(), "node": os.environ["GPUSHARE_NODE"]}
    known.update(cards=os.environ["CUDA_VISIBLE_DEVICES"], tasks=int(os.environ["GPUSHARE_TASK_COUNT"]), host=host)
    path = os.path.join(directory, f"{attempt}-{rank}.json")
    with open(path + ".part", "w", encoding="ascii") as file:
        json.dump(known, file)
    os.replace(path + ".part", path)
    while not os.path.exists(gate):
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
