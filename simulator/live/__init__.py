"""Live fleets: real agents, each with its own connection, folder and runtime, several a process."""
