"""What can be configured, what follows from it, and what is wrong with it. Imports no provider SDK."""
