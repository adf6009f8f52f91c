-- v4 -> v5 (compatible with v5+): Rotations beyond the storm limit are held until released; what is due is found by index
ALTER TABLE rotation ADD COLUMN held BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE rotation ADD COLUMN released_at TIMESTAMPTZ;
CREATE INDEX rotation_created ON rotation (created_at);
CREATE INDEX rotation_received ON rotation (id) WHERE state IN ('received', 'waiting_for_enrollment') AND ended_at IS NULL;
CREATE INDEX attempt_unanswered ON attempt (sent_at) WHERE stage = '';
CREATE INDEX device_user ON device (user_id) WHERE state = 'enrolled';
