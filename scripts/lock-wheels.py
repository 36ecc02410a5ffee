"""Writes a pip requirements file with hashes from a lock file of `uv pip compile --format pylock.toml`.

uv's own requirements file lists the hashes of every platform's files, which is eight times as large.

Usage: lock-wheels.py PYLOCK >requirements.lock
"""

import sys
import tomllib


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        packages = tomllib.load(file)["packages"]
    print("# Written by scripts/lock-wheels.py; change requirements.in instead.")
    for package in packages:
        hashes = sorted(wheel["hashes"]["sha256"] for wheel in package["wheels"])
        options = "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes)
        print(f"{package['name']}=={package['version']}{options}")


if __name__ == "__main__":
    main()
