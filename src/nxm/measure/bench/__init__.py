"""`nxm bench`: what 2:4 gains on this machine, in single products and in whole encoders, with the kernels that ran.

Needs no trained model, no data and no network: the time of a product does not depend on its values. Units of work run
in the order of their worth until the budget is spent; each row is on the disk as soon as it is measured.
"""
