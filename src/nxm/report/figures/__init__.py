"""One module a figure; its name is the file's."""
