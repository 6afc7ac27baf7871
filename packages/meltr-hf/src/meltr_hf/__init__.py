"""Text models of transformers for meltr: encoders, decoders and encoder-decoders, by name or folder."""
