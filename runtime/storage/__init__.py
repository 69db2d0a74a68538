"""Files, SQLite and Redis as other packages use them."""
