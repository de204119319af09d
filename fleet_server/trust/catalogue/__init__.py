"""What exists: a TUF repository kept here, so that devices need not believe the server.

``signers`` holds who signs for which role, ``files`` what lies on disk, ``committed`` what that
says, ``repository`` how it changes, ``opening`` how it begins, ``upkeep`` when it is signed anew.
"""
