"""The agents' side: clients, readers, and what is built on them. Never imports the engine, except to start one."""
