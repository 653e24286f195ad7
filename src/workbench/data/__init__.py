"""Rows in: read, split, kept apart from what judges them, and rendered as the model will see them."""
