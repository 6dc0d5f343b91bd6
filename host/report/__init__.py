"""Reports: plain rows in; terminal tables, JSON, pages and plots out. Nothing here prints."""
