"""Tables in the layouts of the papers and of our own, from result rows and from what the papers report."""
