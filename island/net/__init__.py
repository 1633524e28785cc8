"""Everything that speaks HTTP: peer sessions, the Livy gateway and the operator API."""
