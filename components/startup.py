"""Makes the program start faster. What saves less than a tenth of a preview is not worth a line here."""

import atexit
import gc


def quick() -> None:
    """Keep Python's garbage collector away. Call this before the first import of a provider SDK.

    The SDKs' thousands of classes and most of the program's objects live until the exit, so a search for garbage among
    them finds nothing. docs/decisions/0013 has the measurement.
    """
    gc.disable()  # saves a seventh of a preview of 3 instances
    atexit.register(gc.freeze)  # saves a tenth: the interpreter's last collection, at exit, skips all objects
