"""The executor of a job: offer a place, accept the commit, run the job at an engine, report."""
