"""The command line, called as users call it."""

from fusedstep.apps.cli import main


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    return status, *capsys.readouterr()
