"""How the small scale was chosen, and the results of the paper's plan at every scale."""
