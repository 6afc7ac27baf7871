"""The network: trunks, the classifier with its heads, and building one from options."""
