"""The command line interface, `island`."""
