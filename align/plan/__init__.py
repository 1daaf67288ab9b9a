"""What a run takes: operations, memory and time, counted before it starts."""
