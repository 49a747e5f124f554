"""Templates of requests: what stays the same from one task of an agent to the next, made once."""

from __future__ import annotations

import os
import time
from typing import Callable, Dict, Optional

from ._definitions import Definitions, LoadedDefinition
from ._freshness import Freshness
from ._labels import agent_tags, tenant_tag
from ._request import RequestTemplate, custom_headers
from ._settings import DEFAULT_MODEL, Settings
from ._validation import check_max_tokens, check_model, check_temperature

__all__ = ["Template", "Templates"]

_MOST = 1024


class Template:
    """A request template with what an execution needs to know besides."""

    __slots__ = ("cacheable", "fetch", "freshness", "loaded", "request", "tags")

    def __init__(
        self, request: RequestTemplate, loaded: LoadedDefinition, *, cacheable: bool, freshness: Freshness, tenant: str
    ) -> None:
        self.request = request
        self.loaded = loaded
        self.cacheable = cacheable
        self.freshness = freshness
        self.fetch = freshness.fetch()
        self.tags = (*agent_tags(request.agent_name, loaded.definition, request.model), tenant_tag(tenant))


class Templates:
    """The templates of a project's agents, each as fresh as its agent's definition.

    :param settings: the settings of the orchestrator.
    :param tenant: returns the tenant of the cache in use.
    """

    def __init__(self, settings: Settings, tenant: Callable[[], str]) -> None:
        self._settings = settings
        self._tenant = tenant
        self._definitions = Definitions(settings.project)
        self._made: Dict[object, Template] = {}

    async def get(
        self, agent_name: str, model: Optional[str], max_tokens: int, temperature: Optional[float]
    ) -> Template:
        """Return the template for these arguments.

        :raises InvalidTaskError: if one of them cannot be used.
        :raises UnknownAgentError: if there is no such agent.
        :raises ProjectError: if the agent's files cannot be used.
        """
        try:
            template = self._made.get((agent_name, model, max_tokens, temperature))
        except TypeError:
            template = None  # an argument that cannot be hashed; the checks say which
        if template is None or time.monotonic() >= template.loaded.fresh_until:
            template = await self._resolve(agent_name, model, max_tokens, temperature)
        return template

    async def _resolve(
        self, agent_name: str, model: Optional[str], max_tokens: int, temperature: Optional[float]
    ) -> Template:
        settings = self._settings
        agent = settings.project.agent(agent_name)
        resolved = check_model(model if model is not None else agent.model or DEFAULT_MODEL)
        check_max_tokens(max_tokens)
        checked_temperature = check_temperature(temperature)
        loaded = await self._definitions.get(agent_name)
        key = (agent_name, model, max_tokens, temperature)
        template = self._made.get(key)
        if template is None or template.loaded is not loaded:
            request = RequestTemplate(
                agent_name,
                settings.base_url,
                resolved,
                max_tokens,
                checked_temperature,
                loaded.definition,
                custom_headers(os.environ),
            )
            template = Template(
                request,
                loaded,
                cacheable=agent_name not in settings.exclude_agents,
                freshness=agent.freshness.over(settings.freshness),
                tenant=self._tenant(),
            )
            if len(self._made) >= _MOST:
                self._made.clear()
            self._made[key] = template
        return template
