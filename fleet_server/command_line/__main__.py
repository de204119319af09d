"""``python -m fleet_server.command_line`` is ``edgefleet``."""

from fleet_server.command_line import main

main()
