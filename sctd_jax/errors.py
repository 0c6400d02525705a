"""The one exception that is meant for the person at the terminal. A leaf: anyone may import it."""


class UserError(Exception):
    """Bad config, data, checkpoint or topology.

    The message names the field or file, what was found and what is expected; `main` prints it
    without a traceback and exits with status 2.
    """
