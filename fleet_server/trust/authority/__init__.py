"""Who is who on the wire: the fleet's own certificate authorities.

``certificates`` makes and reads X.509, ``standing`` says which authorities issue and which are
believed, ``authority`` keeps keys and files and builds TLS contexts from them.
"""
