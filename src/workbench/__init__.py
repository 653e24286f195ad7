"""Fine-tune a small open model on your own task, prove it item by item, and hand it to serving."""

__version__ = "0.1.0"
