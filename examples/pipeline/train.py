"""Train on all shards, one epoch after the other, and go on where an earlier run was stopped.

Needs numpy. SIGTERM (a preemption, a drain, a time limit) ends it after the epoch at hand, with code 85, which the job
names as a reason to be queued again.
"""

import argparse
import json
import signal
import time
from pathlib import Path

import numpy as np

CHECKPOINT = Path("checkpoint.json")
STOPPED_CODE = 85


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between epochs")
    given = parser.parse_args()
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))

    shards = [np.load(path) for path in sorted(Path("shards").glob("[0-9]*.npz"))]
    rows = np.concatenate([shard["rows"] for shard in shards])
    target = np.concatenate([shard["target"] for shard in shards])
    weights, done = np.zeros(rows.shape[1]), 0
    if CHECKPOINT.exists():
        saved = json.loads(CHECKPOINT.read_text())
        weights, done = np.array(saved["weights"]), saved["epochs"]
        print(f"going on after epoch {done}", flush=True)
    for epoch in range(done + 1, given.epochs + 1):
        for _ in range(5):
            error = rows @ weights - target
            weights = weights - 0.3 * rows.T @ error / len(rows)
        print(f"epoch {epoch}: loss {float(error @ error) / len(rows):.4f} on {len(shards)} shards", flush=True)
        partial = CHECKPOINT.with_suffix(".partial")
        partial.write_text(json.dumps({"epochs": epoch, "weights": weights.tolist()}))
        partial.rename(CHECKPOINT)
        if stopped and epoch < given.epochs:
            print("told to stop; the epoch is saved", flush=True)
            raise SystemExit(STOPPED_CODE)
        time.sleep(given.pause)
    print(f"done: {np.abs(weights - np.arange(rows.shape[1])).max():.3f} is the largest error of a weight")


if __name__ == "__main__":
    main()
