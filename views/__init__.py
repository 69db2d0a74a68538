"""Routes and pages of the aiohttp application."""
