"""Suspicion: what in a text looks like an attempt to pass for somebody else. Found and reported, never changed.

Every search is made of patterns without nested repetition, over windows of bounded length, so its time grows
with the text's length and with nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Dict, Iterable, Iterator, List, Sequence, Set, Tuple

import anyio.to_thread

from ._context import Context
from ._phrases import OVERRIDE

__all__ = ["SUSPICIONS", "examine", "find_suspicions"]

SUSPICIONS = (
    "bidi-characters",
    "fake-fence",
    "invisible-characters",
    "override-instructions",
    "role-spoofing",
    "tag-characters",
)
"""The kinds of suspicion."""

_IN_THREAD_FROM = 2_000
"""Characters. Below, a search takes about as long as the way to a thread and back."""

_WINDOW = 4096
_OVERLAP = 512

# Characters that show nothing. Not here are those that honest texts need: the joiners (U+200C, U+200D) of emoji, of
# Persian and of Indian scripts, unless they stand between ASCII letters, and the marks U+200E, U+200F and U+061C.
_INVISIBLE = re.compile(
    "[\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2064\u206a-\u206f\u3164\uffa0\U000e0100-\U000e01ef]"
    "|(?<=.)\ufeff|(?<=[!-~])[\u200c\u200d]+(?=[!-~])",
    re.DOTALL,
)
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_TAGS = re.compile("[\U000e0000-\U000e007f]")
_FLAGS = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f")

_NOT_SHOWN = {
    code: None
    for first, last in (
        (0xAD, 0xAD),
        (0x115F, 0x1160),
        (0x17B4, 0x17B5),
        (0x180B, 0x180F),
        (0x200B, 0x200F),
        (0x202A, 0x202E),
        (0x2060, 0x206F),
        (0x3164, 0x3164),
        (0xFE00, 0xFE0F),
        (0xFEFF, 0xFEFF),
        (0xFFA0, 0xFFA0),
        (0xE0000, 0xE01EF),
    )
    for code in range(first, last + 1)
}

_ROLE = re.compile(
    r"<\|\s*(?:im_start|im_end|im_sep|system|user|assistant|human|end|endoftext|start_header_id|end_header_id|eot_id|"
    r"begin_of_text|end_of_turn)\s*\|>"
    r"|<(?:start|end)_of_turn>"
    r"|\[/?inst\]|<</?sys>>"
    r"|</?\s*(?:system|assistant|human)(?:[-_ ]?(?:prompt|message|reminder|instructions?|note))?\s*>"
    r"|</?\s*(?:antml|anthropic)[:_-]\w"
    r"|(?:^|\n)[ \t]*\n[ \t]*(?:human|assistant)[ \t]*:"
    r"|(?:^|\n)[ \t]*(?:#{1,6}[ \t]*|\*\*|\[)(?:system|assistant|human|developer)(?:[ \t](?:prompt|message|override))?"
    r"[ \t]*(?:\*\*|\])?[ \t]*:[ \t]*(?:\*\*)?"
    r"|(?:^|\n)[ \t]*(?:system|developer)[ \t]*:[ \t]*(?:you (?:are|must|will|shall|should)\b|your (?:new|real)\b|"
    r"new instructions|ignore\b|disregard\b|override\b|from now on\b)"
)

_FENCE_TAG = re.compile(
    r"<\s{0,4}(/?)\s{0,4}((?:user|untrusted|external)[-_ ]?(?:input|message|task|query|request|data|content|text)"
    r"|data-[0-9a-z]{8,64}|fenced[-_]data|task|prompt|instructions?|context|memory|documents?|input|data|query)"
    r"(\s[^<>]{0,256})?>"
)
_FENCE_LINE = re.compile(
    r"(?:^|\n)[^\w\n]{2,40}end of (?:the |this |all )?(?:\w{1,12} )?"
    r"(?:input|data|context|task|prompt|message|document|memory|query|text)s?\b[^\w\n]{0,40}(?=\n|$)"
)


def find_suspicions(text: str) -> Tuple[str, ...]:
    """Return the kinds of suspicion in a text, out of :data:`SUSPICIONS`, in alphabetical order.

    Takes time in proportion to the length, a tenth of a second or less for 100,000 characters of most texts.
    """
    found: Set[str] = set()
    readable = text
    if not text.isascii():
        if _INVISIBLE.search(text):
            found.add("invisible-characters")
        if _BIDI.search(text):
            found.add("bidi-characters")
        if _TAGS.search(_FLAGS.sub("", text)):
            found.add("tag-characters")
        # What is hidden between the letters, or written in letters of another width, is read as the model reads it.
        readable = unicodedata.normalize("NFKC", text.translate(_NOT_SHOWN))
    readable = readable.lower()
    if _closes_a_fence(readable):
        found.add("fake-fence")
    for window in _windows(readable):
        if OVERRIDE.search(window):
            found.add("override-instructions")
        if _ROLE.search(window):
            found.add("role-spoofing")
        if _FENCE_LINE.search(window):
            found.add("fake-fence")
    return tuple(sorted(found))


async def examine(task: str, context: Sequence[Context]) -> Tuple[str, ...]:
    """Return what is suspicious in a task and its context, such as ``task:role-spoofing`` and ``memory:fake-fence``.

    What comes out of a context is named by its kind. Long texts are searched in a thread.
    """
    texts = [("task", task), *((item.kind, f"{item.source}\n{item.text}") for item in context)]
    if sum(len(text) for _, text in texts) < _IN_THREAD_FROM:
        return _examine(texts)
    return await anyio.to_thread.run_sync(_examine, texts)


def _examine(texts: Iterable[Tuple[str, str]]) -> Tuple[str, ...]:
    found: List[str] = [f"{name}:{kind}" for name, text in texts for kind in find_suspicions(text)]
    return tuple(dict.fromkeys(found))


def _closes_a_fence(text: str) -> bool:
    """Whether a tag that prompts are fenced with is closed and was not opened, or looks like one of our own."""
    opened: Dict[str, int] = {}
    for match in _FENCE_TAG.finditer(text):
        closing, name, _ = match.groups()
        if name.startswith("data-"):
            return True
        count = opened.get(name, 0) + (-1 if closing else 1)
        if count < 0:
            return True
        opened[name] = count
    return False


def _windows(text: str) -> Iterator[str]:
    # Pieces that overlap by more than any phrase is long. A single search would hold the interpreter until it ends,
    # also from a thread.
    yield text[:_WINDOW]
    for start in range(_WINDOW - _OVERLAP, len(text) - _OVERLAP, _WINDOW - _OVERLAP):
        yield text[start : start + _WINDOW]
