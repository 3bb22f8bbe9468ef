"""What a lint run cannot do, and why, in one line."""


class Trouble(Exception):
    """The tool cannot go on with a model, or at all: a bad path, a file that does not import.

    Its text is for the user; a traceback is shown with `-v` only.
    """


class Lacking(Trouble):
    """The user has to say more: the line ends with a command that says it."""
