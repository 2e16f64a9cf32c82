"""Reading rows of files: their format, and the records they become."""
