"""Texts: WordPiece, and the vocabulary that stays with a run."""
