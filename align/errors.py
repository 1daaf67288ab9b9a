"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the file, row, flag or key, and the mend.

    train.py prints that line and exits with status 2. Any other exception is a fault of ours and keeps its traceback.
    """
