"""Private servers for tests: on free ports of the loopback interface, in their own folders, ended by process id."""
