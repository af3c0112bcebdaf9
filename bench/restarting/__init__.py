"""What `recovery` measures: engines that are killed at work and start again, and what an engine writes."""
