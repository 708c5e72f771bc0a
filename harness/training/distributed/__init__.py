"""The processes of one run: how they meet, what they exchange, and how all of them end."""
