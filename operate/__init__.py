"""What people run on a stack that is up."""
