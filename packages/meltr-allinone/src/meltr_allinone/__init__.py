"""All-in-one (Wang et al. 2022) for meltr: one ViT over text and frames, and its losses."""
