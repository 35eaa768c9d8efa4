"""What was run and what differed: runs and tables read, compared, and gathered for a report."""
