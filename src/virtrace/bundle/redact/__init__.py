"""Replace what identifies a host, its guests and its users, in the texts of a bundle.

Nothing is replaced because it looks private: a text stays only if its place, its form or a list
says that it is harmless. Each text is read by its structure (JSON, also inside strings, XML, URIs,
command lines, prose), and names become pseudonyms of the kind that their place implies.

Every text is read twice by the same code: first to collect the originals, then to replace them.
"""
