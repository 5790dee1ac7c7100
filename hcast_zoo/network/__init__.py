"""The network: the paper's figure."""
