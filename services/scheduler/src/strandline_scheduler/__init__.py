"""The scheduler: turns the policies of protection groups into signed commands, at their times."""
