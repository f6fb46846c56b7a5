"""Everything that goes over HTTP: one client, credentials, chat endpoints, the reward protocol."""
