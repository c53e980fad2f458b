"""One replica and its writer: the index, the job it receives, its recovery points, its opening."""
