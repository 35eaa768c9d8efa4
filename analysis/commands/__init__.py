"""One file a command of `python -m analysis`: its arguments, and what it does."""
