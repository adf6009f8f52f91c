-- v6 -> v7 (compatible with v5+): How far each run of a device's store has reported, to notice a store that went back
CREATE TABLE device_run (
	device UUID NOT NULL REFERENCES device (id),
	run    UUID NOT NULL,
	base   BIGINT NOT NULL,
	count  BIGINT NOT NULL,
	PRIMARY KEY (device, run)
);
ALTER TABLE report ADD COLUMN store_run UUID;
ALTER TABLE report ADD COLUMN store_count BIGINT;
CREATE INDEX report_store ON report (device, store_run, store_count) WHERE store_run IS NOT NULL;
ALTER TABLE device ADD COLUMN went_back_at TIMESTAMPTZ;
