"""The links of an editable install: one for each file and folder of compiler/llmc, and one for each package beside it.

It is installed too, and runs when Python starts: a new file of compiler/llmc is linked, the link of one that is gone
goes. All else lies in folders that are linked whole.
"""

import os

FOLDER = ".editable"
BESIDE = ("compiler", "passes", "targets", "runtime")


def refresh(root):
    """`make`, at Python's start: a checkout that is gone, or that may not be written, stops nobody."""
    try:  # noqa: SIM105 (importing contextlib would cost every Python a millisecond)
        make(root)
    except OSError:
        pass


def make(root):
    """Make the links of the checkout `root` what its sources are."""
    own, folder = os.path.join("compiler", "llmc"), os.path.join(root, FOLDER, "llmc")
    wanted = {name: name for name in BESIDE}
    for name in os.listdir(os.path.join(root, own)):
        if name != "__pycache__":
            wanted[name] = os.path.join(own, name)
    os.makedirs(folder, exist_ok=True)
    for name in set(os.listdir(folder)) - set(wanted) - {"__pycache__"}:
        os.unlink(os.path.join(folder, name))
    for name in set(wanted) - set(os.listdir(folder)):
        try:  # noqa: SIM105
            os.symlink(os.path.join("..", "..", wanted[name]), os.path.join(folder, name))
        except FileExistsError:  # another Python has started at the same time
            pass
