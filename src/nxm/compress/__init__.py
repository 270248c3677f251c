"""Compress a user's model on the user's own data: `nxm compress MODEL --train data.csv --to "2:4 int8"`.

The rooms below have the methods, the exports and the measurements; here they meet a table and a model that no study
knows. `nxm.compress.run.compress_model` is the entry, `nxm.compress.settings.Compression` its settings.
"""
