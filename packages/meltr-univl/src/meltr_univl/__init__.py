"""UniVL for meltr."""
