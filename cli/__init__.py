"""The command line, installed as ``emdl``."""


def main(args=None):
    """Run the command line and return its exit code.

    Parameters
    ----------
    args : list of str, optional
        What stands after ``emdl``; by default what the shell gave.

    Returns
    -------
    int
        0 done; 2 bad input or usage; 130 interrupted; 141 the reader of the output went away; 143 terminated.
    """
    from .app import run

    return run(args)
