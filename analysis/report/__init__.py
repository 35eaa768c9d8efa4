"""What people read: figures, tables, and a page or a Markdown file around them."""
