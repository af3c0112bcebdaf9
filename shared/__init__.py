"""What every process shares: models, mutations, errors, formats, and the layout of the memory. Imports nothing of the
other rooms.
"""
