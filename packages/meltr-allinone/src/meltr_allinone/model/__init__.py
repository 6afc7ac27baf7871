"""The network, and how it scores texts and videos."""
