"""What performs the core's effects: the clock, the store, the network, and the loop around them.

Reading order: ``daemon`` (the loop), ``performing`` (one effect at a time), then what they use.
"""
