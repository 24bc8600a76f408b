"""One file a question: its arms and its claims, as data."""
