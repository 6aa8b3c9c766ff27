"""Data-parallel training: every task holds one block of rows of the matrix, and gradients are summed over sockets.

Needs numpy. A gang of any size runs it: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are in each task's environment.
"""

import argparse
import os
import socket
import time

import numpy as np

CONNECT_LIMIT_S = 60.0


def data(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The whole problem; every rank makes the same one and keeps its own block of it."""
    draw = np.random.default_rng(1)
    matrix = draw.standard_normal((rows, columns))
    return matrix, matrix @ draw.standard_normal(columns) + 0.1 * draw.standard_normal(rows)


class Ranks:
    """Sums over all ranks. Rank 0 adds the parts in the order of ranks, so that a run can be repeated to the bit."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank = rank
        address = (os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29400")))
        self.peers: list[socket.socket] = []
        if world == 1:
            return
        if rank == 0:
            with socket.create_server(("", address[1])) as server:
                server.settimeout(CONNECT_LIMIT_S)
                found = {}
                while len(found) < world - 1:
                    peer, _ = server.accept()
                    found[int.from_bytes(receive(peer, 4), "big")] = peer
            self.peers = [found[other] for other in sorted(found)]
        else:
            peer = connect(address)
            peer.sendall(rank.to_bytes(4, "big"))
            self.peers = [peer]

    def sum(self, part: np.ndarray) -> np.ndarray:
        if not self.peers:
            return part
        if self.rank:
            self.peers[0].sendall(part.tobytes())
            return np.frombuffer(receive(self.peers[0], part.nbytes)).reshape(part.shape)
        total = part.copy()
        for peer in self.peers:
            total += np.frombuffer(receive(peer, part.nbytes)).reshape(part.shape)
        for peer in self.peers:
            peer.sendall(total.tobytes())
        return total


def connect(address: tuple[str, int]) -> socket.socket:
    """Rank 0 may start a moment later than the others."""
    give_up = time.monotonic() + CONNECT_LIMIT_S
    while True:
        try:
            return socket.create_connection(address, timeout=CONNECT_LIMIT_S)
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def receive(peer: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        some = peer.recv(size - len(parts))
        if not some:
            raise ConnectionError("a rank went away")
        parts += some
    return bytes(parts)


def train(ranks: Ranks, matrix: np.ndarray, target: np.ndarray, rows: int, steps: int, say: bool) -> np.ndarray:
    """Least squares by gradient descent; `matrix` and `target` are this rank's block of `rows` rows in all."""
    weights = np.zeros(matrix.shape[1])
    for step in range(steps):
        error = matrix @ weights - target
        # The loss travels with the gradient: one sum a step.
        total = ranks.sum(np.append(matrix.T @ error, error @ error)) / rows
        weights = weights - 0.5 * total[:-1]
        if say and (step % 10 == 0 or step == steps - 1):
            print(f"step {step:3d}  loss {total[-1]:.6f}", flush=True)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    matrix, target = data(given.rows, given.columns)
    block = np.array_split(np.arange(given.rows), world)[rank]
    print(f"rank {rank} of {world} holds rows {block[0]} to {block[-1]}", flush=True)
    weights = train(Ranks(rank, world), matrix[block], target[block], given.rows, given.steps, say=rank == 0)
    if rank == 0:
        alone = train(Ranks(0, 1), matrix, target, given.rows, given.steps, say=False)
        difference = float(np.abs(weights - alone).max())
        print(f"largest difference from one process alone: {'below' if difference < 1e-9 else 'ABOVE'} 1e-9")
        raise SystemExit(difference >= 1e-9)


if __name__ == "__main__":
    main()
