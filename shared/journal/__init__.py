"""What is on disk: journal entries in files, checkpoints, and how both are read by who does not write them."""
