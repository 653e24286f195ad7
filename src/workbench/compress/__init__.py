"""Compress: an adapter merged into 16-bit weights, and those weights in the formats that serving wants."""
