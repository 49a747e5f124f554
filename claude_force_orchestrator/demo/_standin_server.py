"""A process that serves a local Messages API until its standard input closes.

Run by file name, so that it needs llmock and nothing else of the interpreter that runs it. Each line of its
standard input is a JSON object of settings; it answers each with a line of JSON, its port, once they are in
force. A parent that goes away, in whatever manner, closes the pipe, and the server ends with it.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Optional


def serve() -> None:
    """Serve on a free loopback port that the system chooses."""
    from llmock.chaos import ChaosSettings
    from llmock.ratelimit import LimitSettings
    from llmock.testing import LLMockServer

    def configure(
        *,
        latency_ms: int = 0,
        rpm: Optional[int] = None,
        tpm: Optional[int] = None,
        context_window: Optional[int] = None,
        error_rates: Any = (),
    ) -> None:
        chaos = ChaosSettings(error_rates={int(status): rate for status, rate in dict(error_rates).items()})
        server.state.chaos.latency_ms = latency_ms
        server.state.chaos.error_rates = chaos.validated().error_rates
        server.state.limiter.configure(LimitSettings(rpm=rpm, tpm=tpm, context_window=context_window))

    with LLMockServer() as server:
        for line in sys.stdin.buffer:
            configure(**json.loads(line))
            sys.stdout.write(json.dumps({"port": server.port}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    serve()
