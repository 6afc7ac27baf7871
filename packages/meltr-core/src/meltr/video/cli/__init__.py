"""Commands for videos, added through the hook ``register_commands`` as a plugin's would be."""
