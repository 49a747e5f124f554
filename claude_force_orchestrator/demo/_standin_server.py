"""A process that serves a local Messages API until its standard input closes.

Run by file name, so that it needs llmock and nothing else of the interpreter that runs it. It prints one
line of JSON with its port once it listens. A parent that goes away, in whatever manner, closes the pipe,
and the server ends with it.
"""

from __future__ import annotations

import argparse
import json
import sys


def main() -> None:
    """Serve on a free loopback port that the system chooses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency-ms", type=int, default=0)
    latency = parser.parse_args().latency_ms

    from llmock.chaos import ChaosSettings
    from llmock.testing import LLMockServer

    with LLMockServer(chaos=ChaosSettings(latency_ms=latency)) as server:
        sys.stdout.write(json.dumps({"port": server.port}) + "\n")
        sys.stdout.flush()
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
