"""The recipe: every key with its default and meaning, and `read()`, which lets a composed one in."""

from workbench.recipe.distil import Shrink, Teach
from workbench.recipe.nouns import (
    Bundle,
    Columns,
    Data,
    Evaluate,
    Gate,
    Launch,
    Method,
    Model,
    Quantize,
    Recipe,
    Tracking,
)
from workbench.recipe.read import (
    has_open_teacher,
    has_teacher,
    known_keys,
    read,
    refuse_secrets,
    register_schema,
    sources_of,
    to_dict,
    weights_of,
)
from workbench.recipe.teacher import Price, Teacher

__all__ = [
    "Bundle",
    "Columns",
    "Data",
    "Evaluate",
    "Gate",
    "Launch",
    "Method",
    "Model",
    "Price",
    "Quantize",
    "Recipe",
    "Shrink",
    "Teach",
    "Teacher",
    "Tracking",
    "has_open_teacher",
    "has_teacher",
    "known_keys",
    "read",
    "refuse_secrets",
    "register_schema",
    "sources_of",
    "to_dict",
    "weights_of",
]
