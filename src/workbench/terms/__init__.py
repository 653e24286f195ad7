"""Licences and teachers' terms: what may be trained on whose answers, and what is owed for it."""
