"""The route stage: which rows a promise rests on, the threshold that it allows, and what the test says of it."""
