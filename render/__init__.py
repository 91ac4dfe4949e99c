"""Pure functions to the text that machines and pods read, one file per reader. No provider SDK, no I/O."""
