"""ALPRO (Li et al. 2022) for meltr: TimeSformer, a BERT for text and fusion, and their losses."""
