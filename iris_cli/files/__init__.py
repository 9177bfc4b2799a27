"""Files: publishing, content hashes, schema-checked JSON, downloads and safe archives.

Nothing here knows what a volume or a task is. `publish` is the only way a file gets its final
name, `read_record` the only way JSON becomes a value, and both name the file when they refuse.
"""
