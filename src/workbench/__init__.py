"""Fine-tune a small open model on your own task, prove it item by item, and hand it to serving."""

from workbench.isolation import leave_current_folder

__version__ = "0.1.0"

leave_current_folder()

from workbench.quick_imports import import_quickly  # noqa: E402  # what it imports may not come from that folder

import_quickly()
