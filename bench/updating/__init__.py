"""What `throughput` measures: agents that update and nothing else, how readers fare beside one, and a floor."""
