"""Bundles: what one holds, that it holds what it says, and how it is handed out."""
