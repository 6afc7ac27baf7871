"""All-in-one for meltr."""
