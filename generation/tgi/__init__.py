"""Text generation over HTTP: what each server takes, one endpoint, the scheduler over several, the embedded model."""
