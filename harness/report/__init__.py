"""Reports for people: terminal tables, pages, Markdown and pictures. No torch."""
