"""Labels: the tags that answers are stored with, and by which they can be invalidated together."""

from __future__ import annotations

import hashlib
from typing import Any, Iterable, Optional, Tuple

from ._errors import InvalidTaskError
from ._project import Definition

__all__ = ["agent_tags", "check_tags", "invalidation_tags", "model_tag", "tenant_tag", "workflow_tag"]

_OWN = ("agent:", "model:", "workflow:", "tenant:")
_LONGEST_TAG = 200
_MOST_TAGS = 16
_DIGITS = 12


def agent_tags(agent_name: str, definition: Definition, model: str) -> Tuple[str, ...]:
    """Return the tags of the agent, of the agent as it is now, and of the model."""
    version = f"{agent_name}@{definition.digest.hex()[:_DIGITS]}"
    return _tag("agent", agent_name), _tag("agent", version), model_tag(model)


def model_tag(model: str) -> str:
    """Return the tag of all answers of a model."""
    return _tag("model", model)


def tenant_tag(tenant: str) -> str:
    """Return the tag of all answers of a tenant. A cache without a tenant is that of the nameless one."""
    return _tag("tenant", tenant)


def workflow_tag(workflow_name: object) -> Tuple[str, ...]:
    """Return the tag of a workflow, if there is one."""
    return (_tag("workflow", workflow_name),) if isinstance(workflow_name, str) and workflow_name else ()


def check_tags(tags: Iterable[Any]) -> Tuple[str, ...]:
    """Return a caller's own tags.

    :raises InvalidTaskError: if they are more than 16, one is no text of 1 to 200 bytes in UTF-8, or begins like
        one of those that are given anyway.
    """
    if isinstance(tags, str):
        raise InvalidTaskError("tags is a list of texts, not a single one: put it in brackets")
    try:
        given = tuple(tags)
    except TypeError:
        raise InvalidTaskError(f"tags is a list of texts, not a {type(tags).__name__}") from None
    for tag in given:
        if not isinstance(tag, str) or not tag or len(tag.encode("utf-8", "surrogatepass")) > _LONGEST_TAG:
            raise InvalidTaskError(f"a tag is text of 1 to {_LONGEST_TAG} bytes, not {tag!r:.80}")
        if not _encodable(tag):
            raise InvalidTaskError("a tag holds a lone surrogate; decode its source correctly")
        if tag.startswith(_OWN):
            raise InvalidTaskError(f"a tag must not begin with {', '.join(_OWN)}, as {tag!r:.80} does: give it another")
    if len(given) > _MOST_TAGS:
        raise InvalidTaskError(f"a task has at most {_MOST_TAGS} tags, not {len(given)}")
    return given


def invalidation_tags(
    *,
    agent: Optional[str] = None,
    model: Optional[str] = None,
    workflow: Optional[str] = None,
    tags: Iterable[str] = (),
) -> Tuple[str, ...]:
    """Return the tags whose answers are meant.

    :raises InvalidTaskError: if there is none, or one of them cannot be used.
    """
    named = (("agent", agent), ("model", model), ("workflow", workflow))
    for kind, name in named:
        if name is not None and (not isinstance(name, str) or not name):
            raise InvalidTaskError(f"the {kind} to invalidate is given by its name, not {name!r:.80}")
    found = (*(_tag(kind, name) for kind, name in named if name is not None), *check_tags(tags))
    if not found:
        raise InvalidTaskError("nothing to invalidate: name an agent, a model, a workflow or tags")
    return found


def _tag(kind: str, name: str) -> str:
    """Return a tag that fits, whatever the name: a long one, or one that UTF-8 cannot carry, by its digest."""
    data = name.encode("utf-8", "surrogatepass")
    if len(data) > _LONGEST_TAG or not _encodable(name):
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return f"{kind}:{name}"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
