"""The database: tables, the episode log and one store a noun. The only place where SQLAlchemy is known."""
