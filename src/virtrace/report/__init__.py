"""Output for people: text, pages, pictures, exports. Formatters yield lines and print nothing."""
