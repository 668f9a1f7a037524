"""The entry point of the command line: a signal ends it quietly before its commands are there."""

import signal


def main() -> None:
    """Import the commands, which takes a second, and run them; see `app.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of an import
    from streamlm.cli.threads import wait_asleep

    wait_asleep()
    from streamlm.cli.app import main as run

    run()
