"""A run made of the original's released files.

reader          the files row by row
defects         what is wrong with a row, and which task it is of
importing       all files: surveyed to their end, then written
shards          captions as shards
instructions    conversations as shards
report          what was found, for people
"""
