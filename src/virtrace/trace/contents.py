"""What `content` of an event says of data that was written: the formats that are known."""

from __future__ import annotations

NO_FORMAT, ZEROES = "none of the known formats", "zeroes"
GPT, GPT_BACKUP = "a GPT header", "a GPT backup header"
EXT, XFS = "an ext superblock", "an XFS superblock"
NTFS, LUKS, MD = "an NTFS boot sector", "a LUKS header", "an md superblock"
FORMATS = (ZEROES, GPT, GPT_BACKUP, EXT, XFS, NTFS, LUKS, MD)
