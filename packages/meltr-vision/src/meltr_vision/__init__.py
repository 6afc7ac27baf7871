"""Image backbones for meltr."""
