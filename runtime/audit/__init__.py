"""The audit log: an append-only file of JSON lines.

``chain`` links the lines by MACs, ``log`` writes them, ``verify`` checks them, and ``files`` has the file operations.
"""
