"""Types, the roles' protocols, errors, registries and settings. Imports no other room."""
