"""One module a table; its name is the file's."""
