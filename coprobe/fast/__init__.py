"""The fast inference form of a model, and what it is made of."""
