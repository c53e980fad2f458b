-- Recovery points go, and replicas have a state of their own (docs/catalog.md).

-- Points that are no more, as their store told (number 0: all that it had of the source): an older
-- event that is told again brings none of them back.
CREATE TABLE point_gone (
    source     text   NOT NULL,
    store      text   NOT NULL,
    number     bigint NOT NULL,
    gone_at_ns bigint NOT NULL,
    seen_at_ns bigint NOT NULL,
    PRIMARY KEY (source, store, number)
);

-- The newest point that the store has listed. It has listed all before it: what an event tells of
-- these and is not in `point` is no more.
CREATE TABLE point_listed (
    source         text   NOT NULL,
    store          text   NOT NULL,
    number         bigint NOT NULL,
    received_at_ns bigint NOT NULL,
    PRIMARY KEY (source, store)
);

-- What each store says of its replicas: `body` is its ReplicaState.
CREATE TABLE replica (
    source text  NOT NULL,
    store  text  NOT NULL,
    name   text  COLLATE "C" NOT NULL,
    body   bytea NOT NULL,
    PRIMARY KEY (source, store)
);
CREATE INDEX replica_of_store ON replica (store);

-- `what` is the verb of the event: found or repaired.
ALTER TABLE damage ADD COLUMN what text NOT NULL DEFAULT 'found';
ALTER TABLE damage ALTER COLUMN what DROP DEFAULT;

-- An older catalog has passed over events that it did not know: EVENTS is read again from its
-- beginning.
UPDATE stream_position SET sequence = 0;
DELETE FROM event_offset;
