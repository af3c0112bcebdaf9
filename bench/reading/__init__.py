"""What `snapshot` measures: reading in every way that there is, beside rivals that hold the same entities."""
