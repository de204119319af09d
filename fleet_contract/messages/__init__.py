"""What a device says, and what it is told about what it said. None of these is signed: the
broker's authentication says who speaks, and nothing here makes a device run anything.
"""
