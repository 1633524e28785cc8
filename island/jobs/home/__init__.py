"""The home of a job: accept it, find a place for it, follow it there, keep its results."""
