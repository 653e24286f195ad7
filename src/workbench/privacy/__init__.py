"""Personal data and secrets with a structure: found in a text, swapped for placeholders, masked on screen."""
