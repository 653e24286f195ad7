"""Where this process and its children take code from: never from the folder that a command happens to be given in.

`python -m workbench` has the current folder first on Python's path, so that a `yaml.py` or a `torch/` there would be
run in the place of the library. The package's first act is to take that entry off. This file therefore imports only
what every Python has loaded by itself: another import, `__future__` among them, could be that very file.
"""

import os
import site
import sys

# Python calls a module so while it is still being looked for by `-m`; the others are the console script's names.
STARTED_BY_MODULE, PROGRAMS = "-m", ("workbench", "workbench.exe")


def leave_current_folder() -> None:
    """Take the current folder off Python's path if this process is a command of ours; as a library, leave it there.

    A folder that PYTHONPATH names stays, for it is the user's word; an empty entry and `.` name none.
    """
    program = sys.argv[0] if sys.argv else ""
    if program != STARTED_BY_MODULE and os.path.basename(program) not in PROGRAMS:
        return
    if program == STARTED_BY_MODULE and not sys.flags.safe_path:
        del sys.path[0]
    here = os.path.realpath(os.curdir)
    kept = {os.path.realpath(folder) for folder in [*named_folders(), *site_folders()]}
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != here or here in kept]
    os.environ.update(isolated())


def isolated() -> dict[str, str]:
    """The environment variables that start a Python of ours without its current folder on the path."""
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(named_folders())}


def named_folders() -> list[str]:
    """The folders that PYTHONPATH names."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [entry for entry in entries if entry and os.path.normpath(entry) != os.curdir]


def site_folders() -> list[str]:
    """The folders that packages are installed into."""
    return [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
