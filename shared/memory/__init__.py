"""The shared memory: segments with their write half and read half side by side, and the view that reads them
together.
"""
