"""Jobs: what the agent does with a source and a target volume."""
