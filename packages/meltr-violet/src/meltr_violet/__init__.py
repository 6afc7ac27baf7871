"""VIOLET (Fu et al. 2021) for meltr: Video Swin, BERT embeddings, a cross-modal transformer, and their losses."""
