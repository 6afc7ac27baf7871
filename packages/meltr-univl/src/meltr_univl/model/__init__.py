"""The network: encoders, decoder, beam search, and scores of pairs."""
