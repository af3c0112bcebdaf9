"""The way back from what is on disk to a state: replay, the newest records, leftovers of the dead, repair."""
