"""One file per command, each with a `command`; heavy imports stay inside the functions."""
