"""A root folder and its replicas: who owns it, reads it, what is deleted or was brought here."""
