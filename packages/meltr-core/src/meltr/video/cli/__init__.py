"""Commands about videos: they come through the hook ``register_commands``, as a plugin's would."""
