"""Which device `auto` means here."""

from __future__ import annotations


def device_of(wanted: str = "auto") -> str:
    """`wanted`, or for `auto` cuda where torch sees one, else cpu."""
    import torch

    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
