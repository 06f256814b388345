"""Files that come from outside: which are read, and how their bytes become text or rows.

Every reader goes through this package, so that all take the same names, compressions, byte order
marks and line lengths, and say the same of what they cannot read: `folders` finds the files,
`compressed` opens them, `text` decodes, `parquet` reads columns, `textfiles`
streams texts, and `table` gives rows by index.
"""
