"""From the targets of a lint run to models with inputs."""
