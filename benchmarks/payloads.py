"""What is asked and answered in the measurements: English, the same in every run, and as compressible as prose."""

from __future__ import annotations

import random
from typing import Any, Dict

__all__ = ["noise", "text", "value"]

_WORDS = """
the the the the the the the of of of of and and and and to to to to a a a a in in in is is is it it that that for for
was on on are as with with his they at be this from have or by one had not but what all were when we there can an your
which their said if do will each about how up out them then she many some so these would other into has more her two
like him see time could no make than first been its who now people my made over did down only way find use may water
long little very after words called just where most know get through back much before go good new write our used me
man too any day same right look think also around another came come work three word must because does part even place
well such here take why things help put years different away again off went old number great tell men say small every
found still between name should home big give air line set own under read last never us left end along while might
next sound below saw something thought both few those always looked show large often together asked house world going
want school important until form food keep children feet land side without boy once animals life enough took sometimes
four head above kind began almost live page got earth need far hand high year mother light parts country father let
night following picture being study second eyes soon times story boys since white days ever paper hard near sentence
better best across during today others however sure means knew try told young miles sun ways thing whole hear example
heard several change answer room against top turned learn point city play toward five using himself usually function
returns argument raises exception caller branch review module variable loop index value string buffer handle socket
request response latency throughput memory thread lock race condition deadlock retry timeout limit quota schema field
migration column transaction commit rollback isolation replica shard partition cache eviction expiry digest signature
secret rotation token header payload encoding parser compiler interpreter bytecode frame stack heap pointer reference
cycle collector finalizer descriptor property decorator generator coroutine iterator protocol interface abstraction
dependency injection fixture assertion coverage regression refactoring duplication complexity readability naming comment
documentation changelog release version deployment incident postmortem observability metric histogram percentile alert
""".split()  # noqa: SIM905 - one quoted word a line is no better to read


def text(seed: str, length: int) -> str:
    """Return prose of ``length`` ASCII characters; equal for equal seeds, different for different ones."""
    choose = random.Random(seed)
    sentences = []
    total = 0
    while total < length:
        words = choose.choices(_WORDS, k=choose.randint(6, 18))
        sentence = " ".join(words).capitalize() + choose.choice((". ", ". ", ". ", ".\n", "? ", ": "))
        sentences.append(sentence)
        total += len(sentence)
    return "".join(sentences)[:length]


def value(seed: str, length: int) -> Dict[str, Any]:
    """Return a JSON value around a text of ``length`` characters, shaped like an answer of the Messages API."""
    return {
        "model": "claude-sonnet-5",
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 512, "output_tokens": length // 4},
        "text": text(seed, length),
    }


def noise(length: int) -> bytes:
    """Return bytes of the length of a sealed entry, to fill a store with what nobody will read."""
    return random.Random(length).getrandbits(8 * length).to_bytes(length, "big")
