"""Whole fleets in virtual time: the real cores in one event heap, without sockets and sleeps.

The agent's core, the embedded broker's core and the deciding functions of the rollouts run here
unchanged. One seed replays everything, to the same trace digest.
"""
