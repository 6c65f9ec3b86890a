"""In which order values lie in memory."""
