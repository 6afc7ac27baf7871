"""The network, and its scores of texts and videos."""
