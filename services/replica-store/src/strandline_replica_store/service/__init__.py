"""The store on the bus: who may ask, what it answers, what it receives, its jobs and events."""
