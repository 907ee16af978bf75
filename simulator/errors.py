"""What can go wrong, in the words that the command line prints.

    Exception
    └── PlannerError          one line for a person; never a traceback unless asked for
        ├── InputError        a file, a value or an option is wrong                  exit code 2
        └── InfeasibleError   the question is fine, the machine is too small         exit code 1

The exit code is that of the command line.
"""

from __future__ import annotations


class PlannerError(Exception):
    """Base of the errors that are meant for the user; ``str(error)`` is the whole message."""

    exit_code = 2


class InputError(PlannerError):
    """A file, a value or an option cannot be used; the message names path, value and remedy."""


class InfeasibleError(PlannerError):
    """No plan fits; the message names the memory that is short, by how much, and what would fit."""

    exit_code = 1
