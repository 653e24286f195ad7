"""The views: they read and print, and change nothing."""
