"""The known islands, their local state (up, suspect or down), their names and their servers."""
