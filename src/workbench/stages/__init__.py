"""The stages of a model's life: the only place where rooms meet. Each has `run(recipe, run) -> bool`."""
