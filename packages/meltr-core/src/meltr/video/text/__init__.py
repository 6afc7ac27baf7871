"""Text: WordPiece tokens, and the vocabulary that is stored with a run."""
