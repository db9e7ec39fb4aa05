"""The runs that the paper's figures and tables need, and what came out of them so far."""
