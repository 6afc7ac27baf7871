"""The base class of all descriptions, and the version of the contract that they are part of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

PLUGIN_API = 1
"""Version of the public contract; a plugin states the one it was written for.

It covers the hooks of `meltr.hookspecs` with their arguments, the names that `meltr` exports with their documented
fields and methods, and the modules that ``docs/plugins.md`` lists under "The public contract". Within a version these
grow by optional hooks, arguments, fields and names only; whatever breaks a plugin raises it.
"""


class Info(BaseModel):
    """Base class of all descriptions: frozen, and unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
