"""The error for a library that an integration needs and does not find."""

from __future__ import annotations

from meltr.errors import UserError


class MissingLibraryError(UserError, ImportError):
    """An integration needs a library that is not installed."""


def missing(extra: str, module: str) -> MissingLibraryError:
    """Return the error for a module.

    Args:
        extra: The extra of meltr-core that installs the library, which has the library's name.
        module: The module that needs it.
    """
    return MissingLibraryError(
        f"{module} needs the package {extra!r}, which is not installed or cannot be imported.",
        f"Install it with: pip install 'meltr-core[{extra}]'",
    )
