-- +goose Up

-- Why a sandbox ended, or ends, for programs; the same set as wrenn.EndCauses. '' while it lives, and of rows of older versions.
-- unresponsive_* are set while a sandbox runs and its guest does not answer.
ALTER TABLE sandboxes
    ADD COLUMN end_cause text NOT NULL DEFAULT '' CONSTRAINT sandboxes_end_cause CHECK (end_cause IN ('', 'user', 'timeout', 'guest_powered_off',
        'guest_panicked', 'guest_out_of_memory', 'host_out_of_memory', 'vmm_crashed', 'host_restarted', 'host_lost', 'start_failed', 'quarantined', 'internal')),
    ADD COLUMN unresponsive_since timestamptz,
    ADD COLUMN unresponsive_reason text NOT NULL DEFAULT '';
