"""The best of all trials; run once the array has succeeded (`--after-ok`)."""

import json
from pathlib import Path


def main() -> None:
    results = [json.loads(path.read_text()) for path in Path("results").glob("*.json")]
    best = max(results, key=lambda result: (result["accuracy"], -result["index"]))
    print(f"best of {len(results)}: rate {best['rate']}, width {best['width']}, accuracy {best['accuracy']:.3f}")


if __name__ == "__main__":
    main()
