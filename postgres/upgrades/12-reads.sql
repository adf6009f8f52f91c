-- v11 -> v12 (compatible with v5+): Rotations that a read of a version by somebody else opened
ALTER TABLE rotation ADD COLUMN read_version TEXT NOT NULL DEFAULT '';
