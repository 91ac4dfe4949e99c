"""Pure functions that return the text that machines and pods read. One file per reader, no provider SDK, no I/O."""
