"""One shard of the data, made by one job of an array. A shard that is there already is left alone, so that a second
run makes only what is missing.

Needs numpy.
"""

import os
from pathlib import Path

import numpy as np

ROWS, COLUMNS = 2000, 12
SHARDS = Path("shards")


def main() -> None:
    index = int(os.environ["GPUSHARE_ARRAY_INDEX"])
    path = SHARDS / f"{index}.npz"
    if path.exists():
        print(f"shard {index} is there already")
        return
    SHARDS.mkdir(exist_ok=True)
    draw = np.random.default_rng(index)
    rows = draw.normal(0, 1, (ROWS, COLUMNS))
    target = rows @ np.arange(COLUMNS) + draw.normal(0, 0.1, ROWS)
    # Renamed when it is whole: whoever sees the name sees a whole shard.
    partial = SHARDS / f".{index}.partial.npz"
    np.savez(partial, rows=rows, target=target)
    partial.rename(path)
    print(f"shard {index}: {ROWS} rows")


if __name__ == "__main__":
    main()
