"""When a model or a run counts as collapsed."""
