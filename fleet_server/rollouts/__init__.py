"""Rollouts: campaigns that move a cohort to a release, stage by stage, and take it back.

The deciding modules (:mod:`.states`, :mod:`.plan`, :mod:`.snapshot`, :mod:`.gates`,
:mod:`.decide`, :mod:`.directives`) are pure: a snapshot in, a decision and a directive out. The
rest loads snapshots, applies decisions in one transaction, and answers operators.
"""
