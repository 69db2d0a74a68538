"""The aiohttp route handlers and the web pages."""
