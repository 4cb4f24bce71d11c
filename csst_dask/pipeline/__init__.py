"""What is done to a chip and to a block of chips, and how it is recorded: plain functions that need no cluster."""
